// SPDX-License-Identifier: Apache-2.0
//
// Measures the thread pool: what a run costs that has nothing to do, beside what two passes of a
// pthread_barrier cost (how a pool with one share for each thread would start and end a run), and
// how much of the work gets done while another process takes one processor away.
//
// The figures of a line come from short passes that take turns, so that a busy machine slows them
// alike; speeds are medians of the ratios within a round.
//
// bench_workers [PASSES]
#include "base/workers.h"
#include "bench.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    PASSES = 9,
    PASSES_MAX = 99,
    RUNS = 2000, // a pass without work
    TASKS = 32,  // a run of real work
    THREADS_MAX = 4,
};

// ---- the rival: a share for each thread, a barrier before and behind it ----

typedef struct crew {
    pthread_barrier_t start, end;
    pthread_t threads[THREADS_MAX];
    unsigned count;
    bool quit;
    q3_task *task;
    void *context;
    uint32_t tasks;
} crew;

typedef struct crew_member {
    crew *crew;
    unsigned number;
} crew_member;

static crew_member members[THREADS_MAX];

static void run_share(const crew *c, unsigned number)
{
    for (uint32_t i = c->tasks * number / c->count; i < c->tasks * (number + 1) / c->count; i++)
        c->task(c->context, i, number);
}

static void *crew_main(void *argument)
{
    const crew_member *member = argument;
    crew *c = member->crew;
    for (;;) {
        pthread_barrier_wait(&c->start);
        if (c->quit)
            return NULL;
        run_share(c, member->number);
        pthread_barrier_wait(&c->end);
    }
}

static void crew_create(crew *c, unsigned threads)
{
    *c = (crew){.count = threads};
    pthread_barrier_init(&c->start, NULL, threads);
    pthread_barrier_init(&c->end, NULL, threads);
    for (unsigned i = 1; i < threads; i++) {
        members[i] = (crew_member){c, i};
        if (pthread_create(&c->threads[i], NULL, crew_main, &members[i]))
            bench_die("cannot start a thread");
    }
}

static void crew_run(crew *c, q3_task *task, void *context, uint32_t tasks)
{
    c->task = task;
    c->context = context;
    c->tasks = tasks;
    pthread_barrier_wait(&c->start);
    run_share(c, 0);
    pthread_barrier_wait(&c->end);
}

static void crew_destroy(crew *c)
{
    c->quit = true;
    pthread_barrier_wait(&c->start);
    for (unsigned i = 1; i < c->count; i++)
        pthread_join(c->threads[i], NULL);
    pthread_barrier_destroy(&c->start);
    pthread_barrier_destroy(&c->end);
}

// ---- work ----

static void no_task(void *context, uint32_t index, unsigned worker)
{
    (void)context;
    (void)index;
    (void)worker;
}

static atomic_uint_fast64_t sink;

// Some microseconds of arithmetic that stays in registers.
static void busy_task(void *context, uint32_t index, unsigned worker)
{
    (void)worker;
    uint64_t x = index + 1;
    for (unsigned i = *(const unsigned *)context; i; i--)
        x = x * 6364136223846793005 + 1442695040888963407;
    atomic_fetch_xor_explicit(&sink, x, memory_order_relaxed);
}

// A process that does nothing but compute on one of the processors that this one may use.
static pid_t start_thief(void)
{
    cpu_set_t allowed, one;
    CPU_ZERO(&one);
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0)
        for (unsigned i = CPU_SETSIZE; i-- > 0;)
            if (CPU_ISSET(i, &allowed)) {
                CPU_SET(i, &one);
                break;
            }
    const pid_t parent = getpid();
    const pid_t thief = fork();
    if (thief < 0)
        bench_die("cannot start a process");
    if (thief > 0)
        return thief;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    sched_setaffinity(0, sizeof one, &one);
    for (volatile unsigned x = 0;; x++)
        ;
}

static void stop_thief(pid_t thief)
{
    kill(thief, SIGKILL);
    waitpid(thief, NULL, 0);
}

// ---- measurements ----

typedef struct team {
    q3_workers *workers;
    crew crew;
} team;

static double time_pool(const team *t, q3_task *task, void *context, uint32_t tasks, unsigned runs)
{
    const double start = q3_now();
    for (unsigned i = 0; i < runs; i++)
        q3_workers_run(t->workers, task, context, tasks);
    return (q3_now() - start) / runs;
}

static double time_crew(team *t, q3_task *task, void *context, uint32_t tasks, unsigned runs)
{
    const double start = q3_now();
    for (unsigned i = 0; i < runs; i++)
        crew_run(&t->crew, task, context, tasks);
    return (q3_now() - start) / runs;
}

static void team_create(team *t, unsigned threads)
{
    q3_error err;
    if (!q3_workers_create(threads, &t->workers, &err))
        bench_die(err.message);
    crew_create(&t->crew, threads);
}

static void team_destroy(team *t)
{
    q3_workers_destroy(t->workers);
    crew_destroy(&t->crew);
}

static void bench_empty(unsigned threads, unsigned passes)
{
    double pool[PASSES_MAX], barrier[PASSES_MAX];
    team t;
    team_create(&t, threads);
    for (unsigned i = 0; i < passes; i++) {
        pool[i] = time_pool(&t, no_task, NULL, 2 * threads, RUNS) * 1e6;
        barrier[i] = time_crew(&t, no_task, NULL, 2 * threads, RUNS) * 1e6;
    }
    printf("%7u %11.2f %11.2f\n", threads, bench_median(pool, passes),
           bench_median(barrier, passes));
    team_destroy(&t);
}

// How fast runs of so many loops a task get done, as a multiple of one thread alone.
static void bench_work(unsigned threads, unsigned loops, unsigned passes)
{
    enum { ONE, POOL, BARRIER, KINDS };
    const unsigned runs = 200000 / loops;
    double unit[PASSES_MAX], speed[2][KINDS][PASSES_MAX];
    team one, many;
    team_create(&one, 1);
    team_create(&many, threads);
    for (unsigned i = 0; i < passes; i++)
        for (unsigned robbed = 0; robbed < 2; robbed++) {
            const pid_t thief = robbed ? start_thief() : 0;
            const double times[KINDS] = {
                [ONE] = time_pool(&one, busy_task, &loops, TASKS, runs),
                [POOL] = time_pool(&many, busy_task, &loops, TASKS, runs),
                [BARRIER] = time_crew(&many, busy_task, &loops, TASKS, runs),
            };
            if (robbed)
                stop_thief(thief);
            else
                unit[i] = times[ONE];
            for (unsigned kind = 0; kind < KINDS; kind++)
                speed[robbed][kind][i] = unit[i] / times[kind];
        }
    printf("%7u %11.0f", threads, bench_median(unit, passes) * 1e6);
    for (unsigned robbed = 0; robbed < 2; robbed++)
        for (unsigned kind = ONE; kind < KINDS; kind++)
            printf("%8.2f", bench_median(speed[robbed][kind], passes));
    printf("\n");
    team_destroy(&many);
    team_destroy(&one);
}

int main(int argc, char **argv)
{
    const unsigned passes =
        bench_argument(argc, argv, 1, PASSES, PASSES_MAX, "bench_workers [PASSES]");
    printf("processors: %u\n\nmicroseconds a run without work\nthreads        pool     barrier\n",
           q3_workers_default());
    for (unsigned threads = 1; threads <= THREADS_MAX; threads *= 2)
        bench_empty(threads, passes);
    printf("\nspeed, one thread = 1, of runs of %d tasks\n"
           "threads  one thread  undisturbed             a processor shared\n"
           "           us a run     one    pool barrier     one    pool barrier\n",
           TASKS);
    for (unsigned threads = 2; threads <= THREADS_MAX; threads *= 2)
        for (unsigned loops = 500; loops <= 50000; loops *= 10)
            bench_work(threads, loops, passes);
    return 0;
}
