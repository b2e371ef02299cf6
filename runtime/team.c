// SPDX-License-Identifier: Apache-2.0
#include "team.h"

#include "matrix.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

// Multiply-adds of some 4 microseconds: sharing less than that gains nothing (bench_workers).
enum { SMALL_WORK = 1 << 16 };

uint64_t q3_team_bytes(unsigned threads)
{
    return threads * q3_region_part(Q3_BLOCK_BYTES_MAX, 1);
}

bool q3_team_create(unsigned threads, q3_team *team, q3_error *err)
{
    *team = (q3_team){.count = threads};
    team->readers = q3_alloc_zeroed(threads, sizeof *team->readers, err);
    bool ok = team->readers && q3_workers_create(threads, &team->workers, err);
    for (unsigned i = 0; ok && i < threads; i++)
        ok = (team->readers[i].coder = q3_coder_create(err)) != NULL;
    ok = ok && q3_region_create(q3_team_bytes(threads), &team->blocks, err);
    for (unsigned i = 0; ok && i < threads; i++)
        team->readers[i].block = q3_region_take(&team->blocks, Q3_BLOCK_BYTES_MAX);
    if (!ok)
        q3_team_destroy(team);
    return ok;
}

void q3_team_destroy(q3_team *team)
{
    for (unsigned i = 0; team->readers && i < team->count; i++) {
        q3_coder_destroy(team->readers[i].coder);
        free(team->readers[i].stored);
    }
    free(team->readers);
    q3_region_destroy(&team->blocks);
    q3_workers_destroy(team->workers);
    *team = (q3_team){0};
}

void q3_team_run(const q3_team *team, q3_task *task, void *context, uint32_t count,
                 uint64_t operations)
{
    if (operations >= SMALL_WORK) {
        q3_workers_run(team->workers, task, context, count);
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        task(context, i, 0);
}

typedef struct attempt {
    const q3_team *team;
    q3_team_task *task;
    void *context;
    atomic_uint_fast32_t failed; // the lowest index that has failed
    pthread_mutex_t lock;
    q3_error error; // of that index, under the lock
} attempt;

static void attempt_task(void *context, uint32_t index, unsigned worker)
{
    attempt *a = context;
    q3_error error;
    if (index > atomic_load(&a->failed))
        return;
    if (a->task(a->context, index, &a->team->readers[worker], &error))
        return;
    pthread_mutex_lock(&a->lock);
    if (index < atomic_load(&a->failed)) {
        atomic_store(&a->failed, index);
        a->error = error;
    }
    pthread_mutex_unlock(&a->lock);
}

bool q3_team_try(const q3_team *team, q3_team_task *task, void *context, uint32_t count,
                 q3_error *err)
{
    attempt a = {.team = team, .task = task, .context = context};
    atomic_init(&a.failed, UINT32_MAX);
    pthread_mutex_init(&a.lock, NULL);
    q3_workers_run(team->workers, attempt_task, &a, count);
    pthread_mutex_destroy(&a.lock);
    if (atomic_load(&a.failed) == UINT32_MAX)
        return true;
    *err = a.error;
    return false;
}

static bool make_room(q3_frame_reader *reader, const q3_pack *pack, q3_error *err)
{
    return q3_grow(&reader->stored, &reader->capacity, q3_pack_longest_frame(pack), 1, err);
}

bool q3_reader_frame(q3_frame_reader *reader, const q3_pack *pack, const q3_pack_tensor *tensor,
                     uint32_t frame, void *raw, q3_error *err)
{
    return make_room(reader, pack, err) &&
           q3_pack_read_frame(pack, tensor, frame, reader->coder, reader->stored, raw, err);
}

bool q3_reader_tensor(q3_frame_reader *reader, const q3_pack *pack, const q3_pack_tensor *tensor,
                      void *raw, q3_error *err)
{
    return make_room(reader, pack, err) &&
           q3_pack_read_tensor(pack, tensor, reader->coder, reader->stored, raw, err);
}
