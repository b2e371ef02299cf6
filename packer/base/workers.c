// SPDX-License-Identifier: Apache-2.0
#include "workers.h"

#include "interrupt.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct q3_workers {
    unsigned threads; // the caller's included
    unsigned started;
    pthread_t thread[Q3_WORKERS_MAX];
    pthread_mutex_t lock;
    pthread_cond_t work_ready, work_done;
    // The run in progress; written under the lock while no thread is active.
    uint64_t generation;
    unsigned active; // started threads that have not finished this generation
    bool quit;
    q3_task *task;
    void *context;
    uint32_t count;
    atomic_uint_fast64_t next; // wider than an index, so that it never wraps
};

unsigned q3_workers_default(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    const int count = CPU_COUNT(&set);
    return count < 1 ? 1 : count > Q3_WORKERS_MAX ? Q3_WORKERS_MAX : (unsigned)count;
}

static void run_tasks(q3_workers *workers, unsigned worker)
{
    for (;;) {
        const uint_fast64_t index = atomic_fetch_add(&workers->next, 1);
        if (index >= workers->count)
            return;
        workers->task(workers->context, (uint32_t)index, worker);
    }
}

typedef struct thread_start {
    q3_workers *workers;
    unsigned worker;
} thread_start;

static void *thread_main(void *argument)
{
    thread_start start = *(thread_start *)argument;
    free(argument);
    q3_workers *workers = start.workers;
    uint64_t seen = 0;
    pthread_mutex_lock(&workers->lock);
    for (;;) {
        while (!workers->quit && workers->generation == seen)
            pthread_cond_wait(&workers->work_ready, &workers->lock);
        if (workers->quit)
            break;
        seen = workers->generation;
        pthread_mutex_unlock(&workers->lock);
        run_tasks(workers, start.worker);
        pthread_mutex_lock(&workers->lock);
        if (--workers->active == 0)
            pthread_cond_signal(&workers->work_done);
    }
    pthread_mutex_unlock(&workers->lock);
    return NULL;
}

bool q3_workers_create(unsigned threads, q3_workers **result, q3_error *err)
{
    *result = NULL;
    q3_workers *workers = q3_alloc_zeroed(1, sizeof *workers, err);
    if (!workers)
        return false;
    workers->threads = threads;
    pthread_mutex_init(&workers->lock, NULL);
    pthread_cond_init(&workers->work_ready, NULL);
    pthread_cond_init(&workers->work_done, NULL);
    while (workers->started + 1 < threads) {
        thread_start *start = q3_alloc(1, sizeof *start, err);
        if (!start) {
            q3_workers_destroy(workers);
            return false;
        }
        *start = (thread_start){.workers = workers, .worker = workers->started + 1};
        const int problem =
            pthread_create(&workers->thread[workers->started], NULL, thread_main, start);
        if (problem) {
            free(start);
            q3_fail(err, Q3_FAILED, "cannot start thread %u of %u: %s", workers->started + 1,
                    threads, strerror(problem));
            q3_workers_destroy(workers);
            return false;
        }
        workers->started++;
    }
    *result = workers;
    return true;
}

void q3_workers_destroy(q3_workers *workers)
{
    if (!workers)
        return;
    pthread_mutex_lock(&workers->lock);
    workers->quit = true;
    pthread_cond_broadcast(&workers->work_ready);
    pthread_mutex_unlock(&workers->lock);
    for (unsigned i = 0; i < workers->started; i++)
        pthread_join(workers->thread[i], NULL);
    pthread_cond_destroy(&workers->work_done);
    pthread_cond_destroy(&workers->work_ready);
    pthread_mutex_destroy(&workers->lock);
    free(workers);
}

unsigned q3_workers_count(const q3_workers *workers)
{
    return workers->threads;
}

void q3_workers_run(q3_workers *workers, q3_task *task, void *context, uint32_t count)
{
    workers->task = task;
    workers->context = context;
    workers->count = count;
    atomic_store(&workers->next, 0);
    if (workers->started == 0 || count < 2) {
        run_tasks(workers, 0);
        return;
    }
    pthread_mutex_lock(&workers->lock);
    workers->active = workers->started;
    workers->generation++;
    pthread_cond_broadcast(&workers->work_ready);
    pthread_mutex_unlock(&workers->lock);
    run_tasks(workers, 0);
    pthread_mutex_lock(&workers->lock);
    while (workers->active)
        pthread_cond_wait(&workers->work_done, &workers->lock);
    pthread_mutex_unlock(&workers->lock);
}

// ---- streams ----

enum slot_state { SLOT_FREE, SLOT_BUSY, SLOT_DONE };

typedef struct stream_run {
    const q3_stream *stream;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint8_t *slots;
    enum slot_state *state;
    uint64_t taken, committed; // items; item i lives in slot i % stream->slots
    bool taking, committing, ended, failed;
    q3_error error;
} stream_run;

static void *slot_at(const stream_run *run, uint64_t item)
{
    return run->slots + (size_t)(item % run->stream->slots) * run->stream->slot_bytes;
}

// Called with the lock held.
static void remember_failure(stream_run *run, const q3_error *error)
{
    if (!run->failed) {
        run->failed = true;
        run->error = *error;
    }
}

// Commits what is ready, if no other thread is at it. Called and returns with the lock held.
static void commit_ready(stream_run *run, unsigned worker)
{
    const q3_stream *stream = run->stream;
    while (!run->failed && !run->committing && run->committed < run->taken &&
           run->state[run->committed % stream->slots] == SLOT_DONE) {
        q3_error error;
        bool ok = true;
        const uint64_t item = run->committed;
        if (stream->commit) {
            run->committing = true;
            pthread_mutex_unlock(&run->lock);
            ok = stream->commit(stream->context, slot_at(run, item), worker, &error);
            pthread_mutex_lock(&run->lock);
            run->committing = false;
        }
        if (!ok)
            remember_failure(run, &error);
        run->state[item % stream->slots] = SLOT_FREE;
        run->committed = item + 1;
        pthread_cond_broadcast(&run->changed);
    }
}

static void stream_task(void *context, uint32_t index, unsigned worker)
{
    (void)index;
    stream_run *run = context;
    const q3_stream *stream = run->stream;
    pthread_mutex_lock(&run->lock);
    for (;;) {
        commit_ready(run, worker);
        if (run->failed || (run->ended && run->committed == run->taken))
            break;
        const bool room = run->taken - run->committed < stream->slots;
        if (run->ended || run->taking || !room) {
            pthread_cond_wait(&run->changed, &run->lock);
            continue;
        }
        const uint64_t item = run->taken;
        q3_error error;
        run->taking = true;
        pthread_mutex_unlock(&run->lock);
        const int more = q3_check_interrupt(&error)
                             ? stream->next(stream->context, slot_at(run, item), &error)
                             : -1;
        pthread_mutex_lock(&run->lock);
        run->taking = false;
        pthread_cond_broadcast(&run->changed);
        if (more < 0) {
            remember_failure(run, &error);
            break;
        }
        if (more == 0) {
            run->ended = true;
            continue;
        }
        run->state[item % stream->slots] = SLOT_BUSY;
        run->taken++;
        pthread_mutex_unlock(&run->lock);
        const bool ok = stream->work(stream->context, slot_at(run, item), worker, &error);
        pthread_mutex_lock(&run->lock);
        if (!ok)
            remember_failure(run, &error);
        run->state[item % stream->slots] = SLOT_DONE;
    }
    pthread_cond_broadcast(&run->changed);
    pthread_mutex_unlock(&run->lock);
}

bool q3_workers_stream(q3_workers *workers, const q3_stream *stream, q3_error *err)
{
    stream_run run = {.stream = stream};
    run.slots = q3_alloc_zeroed(stream->slots, stream->slot_bytes, err);
    run.state = run.slots ? q3_alloc_zeroed(stream->slots, sizeof *run.state, err) : NULL;
    if (!run.state) {
        free(run.slots);
        return false;
    }
    pthread_mutex_init(&run.lock, NULL);
    pthread_cond_init(&run.changed, NULL);
    q3_workers_run(workers, stream_task, &run, q3_workers_count(workers));
    pthread_cond_destroy(&run.changed);
    pthread_mutex_destroy(&run.lock);
    for (size_t i = 0; stream->release && i < stream->slots; i++)
        stream->release(stream->context, slot_at(&run, i));
    free(run.state);
    free(run.slots);
    if (run.failed)
        *err = run.error;
    return !run.failed;
}
