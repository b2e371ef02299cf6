// SPDX-License-Identifier: Apache-2.0
#include "workers.h"

#include "interrupt.h"
#include "limits.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

// How a run works. `unclaimed` counts the tasks that nobody has taken; taking one is to lower it by
// compare-and-swap from a value above 0. Who has taken a task may read the run's fields: the run
// cannot end before the task is reported in `unfinished`, and the fields are written only between
// runs. A thread that comes late finds 0 and has read nothing that could change under it, so the
// caller never waits for it: only for tasks that others have taken.
//
// Threads without work look at `unclaimed` for a while before they sleep, because decoding starts a
// run every few dozen microseconds and waking a thread takes as long.
enum {
    CACHE_LINE = 64,
    // Longer than most gaps between the runs of a token. On a busy machine this is what a waiting
    // thread takes from others, which may be the very threads it waits for.
    INSIST_NS = 10000,
    // Until then it lets others go first but is still there at once on a machine with nothing else
    // to do.
    PATIENCE_NS = 50000,
    LOOKS_A_TIME = 16, // between two readings of the clock
};

struct q3_workers {
    unsigned threads; // the caller's included
    unsigned started;
    bool patient; // there is a processor for each thread, so waiting actively takes none away
    pthread_t thread[Q3_WORKERS_MAX];
    pthread_mutex_t lock;
    pthread_cond_t work_ready, work_done;
    // The run in progress.
    q3_task *task;
    void *context;
    uint32_t count;
    // Each on a cache line of its own: the first changes with every task, the others only when a
    // thread runs out of work or falls asleep.
    char apart_claims[CACHE_LINE];
    _Atomic uint32_t unclaimed;
    char apart_reports[CACHE_LINE];
    _Atomic uint32_t unfinished;
    char apart_sleep[CACHE_LINE];
    _Atomic uint32_t sleepers; // started threads that sleep or are about to
    atomic_bool caller_sleeps;
    atomic_bool quit;
};

static unsigned at_most(unsigned count)
{
    return count > Q3_WORKERS_MAX ? Q3_WORKERS_MAX : count;
}

unsigned q3_workers_default(void)
{
    return at_most(q3_available_processors());
}

unsigned q3_workers_of_cores(void)
{
    return at_most(q3_available_cores());
}

// Takes tasks until there are none and runs them. Returns how many, for `unfinished`.
static uint32_t run_tasks(q3_workers *workers, unsigned worker)
{
    uint32_t done = 0;
    uint32_t left = atomic_load_explicit(&workers->unclaimed, memory_order_relaxed);
    while (left) {
        // Acquire: a claim sees the fields that were written before `unclaimed` was set. The other
        // claims in between only change it, which keeps them part of that release.
        if (!atomic_compare_exchange_weak_explicit(&workers->unclaimed, &left, left - 1,
                                                   memory_order_acquire, memory_order_relaxed))
            continue;
        workers->task(workers->context, workers->count - left, worker);
        done++;
        left = atomic_load_explicit(&workers->unclaimed, memory_order_relaxed);
    }
    return done;
}

// ---- waiting ----

static bool something_to_do(const q3_workers *workers)
{
    return atomic_load_explicit(&workers->unclaimed, memory_order_relaxed) ||
           atomic_load_explicit(&workers->quit, memory_order_relaxed);
}

static bool all_finished(const q3_workers *workers)
{
    // Acquire: what the tasks have written is there for the caller.
    return atomic_load_explicit(&workers->unfinished, memory_order_acquire) == 0;
}

static int64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

// Tells the processor that it is waiting for another.
static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Waits actively for a short while. False when it was for nothing.
static bool await_briefly(const q3_workers *workers, bool (*ready)(const q3_workers *workers))
{
    if (ready(workers))
        return true;
    if (!workers->patient)
        return false;
    const int64_t start = clock_ns();
    for (int64_t waited = 0; waited < PATIENCE_NS; waited = clock_ns() - start) {
        if (waited > INSIST_NS)
            sched_yield();
        for (unsigned i = 0; i < LOOKS_A_TIME; i++) {
            relax();
            if (ready(workers))
                return true;
        }
    }
    return false;
}

// No wake-up is lost, and none is made for nobody: a thread first says that it sleeps and then
// looks for work, the caller first sets the work out and then looks for sleepers. With both in the
// one order of sequentially consistent operations, at least one of them sees the other. The thread
// holds the lock from there until it is asleep, and who wakes it takes the lock first.
static void await_work(q3_workers *workers)
{
    if (await_briefly(workers, something_to_do))
        return;
    pthread_mutex_lock(&workers->lock);
    atomic_fetch_add(&workers->sleepers, 1);
    while (!atomic_load(&workers->unclaimed) && !atomic_load(&workers->quit))
        pthread_cond_wait(&workers->work_ready, &workers->lock);
    atomic_fetch_sub(&workers->sleepers, 1);
    pthread_mutex_unlock(&workers->lock);
}

static void wake_for(q3_workers *workers, uint32_t tasks)
{
    const uint32_t sleepers = atomic_load(&workers->sleepers);
    if (!sleepers)
        return;
    pthread_mutex_lock(&workers->lock);
    pthread_mutex_unlock(&workers->lock);
    if (tasks >= sleepers) {
        pthread_cond_broadcast(&workers->work_ready);
        return;
    }
    for (uint32_t i = 0; i < tasks; i++)
        pthread_cond_signal(&workers->work_ready);
}

// The same the other way round: the caller sleeps, and who reports the last task wakes it.
static void await_the_end(q3_workers *workers)
{
    if (await_briefly(workers, all_finished))
        return;
    pthread_mutex_lock(&workers->lock);
    atomic_store(&workers->caller_sleeps, true);
    while (atomic_load(&workers->unfinished))
        pthread_cond_wait(&workers->work_done, &workers->lock);
    atomic_store(&workers->caller_sleeps, false);
    pthread_mutex_unlock(&workers->lock);
}

static void report(q3_workers *workers, uint32_t done)
{
    // Sequentially consistent, and so a release of what the tasks have written.
    if (atomic_fetch_sub(&workers->unfinished, done) != done)
        return;
    // The caller may have seen the end by itself and be in its next run already, or asleep in it:
    // then it looks once too often.
    if (!atomic_load(&workers->caller_sleeps))
        return;
    pthread_mutex_lock(&workers->lock);
    pthread_mutex_unlock(&workers->lock);
    pthread_cond_signal(&workers->work_done);
}

// ---- threads ----

typedef struct thread_start {
    q3_workers *workers;
    unsigned worker;
} thread_start;

static void *thread_main(void *argument)
{
    thread_start start = *(thread_start *)argument;
    free(argument);
    q3_workers *workers = start.workers;
    for (;;) {
        await_work(workers);
        if (atomic_load_explicit(&workers->quit, memory_order_relaxed))
            return NULL;
        const uint32_t done = run_tasks(workers, start.worker);
        if (done)
            report(workers, done);
    }
}

bool q3_workers_create(unsigned threads, q3_workers **result, q3_error *err)
{
    *result = NULL;
    q3_workers *workers = q3_alloc_zeroed(1, sizeof *workers, err);
    if (!workers)
        return false;
    workers->threads = threads;
    workers->patient = threads <= q3_workers_default();
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
    atomic_store(&workers->quit, true);
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
    if (workers->started == 0 || count < 2) {
        for (uint32_t i = 0; i < count; i++)
            task(context, i, 0);
        return;
    }
    workers->task = task;
    workers->context = context;
    workers->count = count;
    atomic_store_explicit(&workers->unfinished, count, memory_order_relaxed);
    atomic_store(&workers->unclaimed, count);
    wake_for(workers, count - 1);
    const uint32_t done = run_tasks(workers, 0);
    if (atomic_fetch_sub_explicit(&workers->unfinished, done, memory_order_acquire) != done)
        await_the_end(workers);
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
