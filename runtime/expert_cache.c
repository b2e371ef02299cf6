// SPDX-License-Identifier: Apache-2.0
#include "expert_cache.h"

#include "base/interrupt.h"
#include "base/progress.h"
#include "expert_score.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { EMPTY = UINT32_MAX >> 1 };

typedef struct slot {
    q3_expert expert;  // .number is EMPTY when it holds none that may be used
    uint64_t last_use; // 0: never
    uint64_t visit;    // the last one that used it
    bool busy;         // being read into, or about to be visited
    uint8_t *memory;
} slot;

typedef struct layer_set {
    slot *slots;
    uint32_t count;
    uint64_t slot_bytes;
    uint32_t *scores; // [expert]
} layer_set;

// What becomes of an expert that is to be read.
typedef enum load_state {
    LOAD_NEW,     // nobody has begun
    LOAD_OPENING, // a reader opens its file
    LOAD_READING, // pieces of the file are handed out to readers, what has arrived is taken
    LOAD_DONE,
    LOAD_FAILED,
} load_state;

typedef struct expert_load {
    uint32_t layer, expert;
    q3_form form;
    uint8_t *memory; // where to
    load_state state;
    bool failed;   // .error says why
    bool dropped;  // nobody wants it any more
    unsigned busy; // readers at work on it
    q3_file file;
    uint64_t image; // where in the memory it is read to
    uint64_t given; // bytes of the file that were handed out
    uint64_t taken; // of its first bytes, those that were there when they were last taken
    bool in_taking; // a thread is at it
    q3_taking *taking;
    q3_expert result;
    q3_error error;
    // Of a visit:
    slot *to;
    uint64_t use; // its number, for the slot
    bool collected;
} expert_load;

// An expert that a layer will probably need, and memory that it is read to: not yet a slot of the
// layer. When the layer does ask for it, this memory changes places with that of the slot that is
// given up for it, and the load is one of the visit.
typedef struct ahead_load {
    expert_load load;
    uint8_t *memory;
    bool used, asked_for;
    uint32_t rank; // the likeliest first
} ahead_load;

// A reader reads at most so much at a time. Large enough for nearly the disk's full rate. A read
// that is asked for waits for no more than one such piece a reader of what is not; and what is left
// to be taken when all of an expert is there is one piece.
enum { PIECE_BYTES = 1 << 20 };

// What a thread is reading of a load: from there on.
typedef struct piece {
    const expert_load *load;
    uint64_t offset;
} piece;

struct q3_expert_cache {
    const q3_model *model;
    bool direct;
    layer_set *layers;
    slot *slots;   // of all layers
    slot *passing; // of no layer: what they hold is forgotten as soon as it is used
    unsigned passing_count;
    bool *met;        // [layer][expert]: was asked for before
    uint32_t *scores; // of all layers
    q3_region memory;
    uint64_t ahead_bytes; // of the memory of each of `ahead`
    uint64_t uses, visits;
    q3_misses *record; // or NULL
    // For one visit: an entry an expert of the model.
    q3_expert *group;
    slot **group_slots;
    uint32_t *missing;
    bool *passes; // of each that is missing
    expert_load *loads;

    pthread_t *threads;
    q3_frame_reader *frame_readers;
    piece *pieces;    // under the lock
    q3_region blocks; // the memory of theirs
    unsigned threads_wanted, thread_count, started;
    pthread_mutex_t lock;
    pthread_cond_t work, arrival;
    // Under the lock:
    q3_expert_counts counts;
    expert_load **wanted; // what the visit in hand has asked for: its own loads, or some of `ahead`
    uint32_t asked;
    ahead_load ahead[Q3_AHEAD_MAX];
    unsigned ahead_count;
    unsigned readers, reading; // that may read at the same time, and that do
    bool in_use;               // of the disk: something is read, or asked for and to be read
    double in_use_since;
    bool only_reads; // nothing of what is read is taken
    bool holding;    // nothing is read ahead until the next visit has asked
    bool closing;
};

// ---- reading ----

// Is there something of it, in this state, for one more reader?
static bool has_work(const expert_load *load, load_state state)
{
    return load->state == state && !load->dropped && !load->failed &&
           (state == LOAD_NEW || load->given < load->file.size);
}

// So many of the file's first bytes are there.
static uint64_t arrived(const q3_expert_cache *cache, const expert_load *load)
{
    uint64_t first = load->given;
    for (unsigned i = 0; i < cache->threads_wanted; i++)
        if (cache->pieces[i].load == load && cache->pieces[i].offset < first)
            first = cache->pieces[i].offset;
    return first;
}

static bool can_take(const q3_expert_cache *cache, const expert_load *load)
{
    return load->state == LOAD_READING && !load->dropped && !load->failed && !load->in_taking &&
           arrived(cache, load) > load->taken;
}

typedef struct work {
    expert_load *load; // or NULL: there is nothing to do
    bool reads;        // or takes
} work;

// What a thread does next. What is asked for comes before what is expected, and reading before
// taking, so that the disk has something to do. Called with the lock held, like all below.
static work find_asked(const q3_expert_cache *cache)
{
    static const load_state order[] = {LOAD_READING, LOAD_NEW};
    const bool may_read = cache->reading < cache->readers;
    // What is begun before what is not, so that each is there as soon as it can be.
    for (size_t i = 0; may_read && i < sizeof order / sizeof *order; i++)
        for (uint32_t j = 0; j < cache->asked; j++)
            if (has_work(cache->wanted[j], order[i]))
                return (work){.load = cache->wanted[j], .reads = true};
    for (uint32_t i = 0; i < cache->asked; i++)
        if (can_take(cache, cache->wanted[i]))
            return (work){.load = cache->wanted[i]};
    return (work){0};
}

static work find_expected(q3_expert_cache *cache)
{
    ahead_load *first = NULL;
    const bool may_read = cache->reading < cache->readers && !cache->holding;
    for (unsigned i = 0; may_read && i < cache->ahead_count; i++) {
        ahead_load *other = &cache->ahead[i];
        const bool begun = has_work(&other->load, LOAD_READING);
        if (!other->used || other->asked_for || (!begun && !has_work(&other->load, LOAD_NEW)))
            continue;
        if (begun)
            return (work){.load = &other->load, .reads = true};
        if (!first || other->rank < first->rank)
            first = other;
    }
    if (first)
        return (work){.load = &first->load, .reads = true};
    for (unsigned i = 0; i < cache->ahead_count; i++)
        if (cache->ahead[i].used && can_take(cache, &cache->ahead[i].load))
            return (work){.load = &cache->ahead[i].load};
    return (work){0};
}

static work find_work(q3_expert_cache *cache)
{
    const work asked = find_asked(cache);
    return asked.load ? asked : find_expected(cache);
}

// Keeps the time in which the disk is in use; called after each change that may begin or end it.
static void note_use(q3_expert_cache *cache)
{
    bool in_use = cache->reading > 0;
    for (uint32_t i = 0; i < cache->asked && !in_use; i++)
        in_use = has_work(cache->wanted[i], LOAD_READING) || has_work(cache->wanted[i], LOAD_NEW);
    if (in_use == cache->in_use)
        return;
    cache->in_use = in_use;
    const double now = q3_now();
    if (!in_use)
        cache->counts.reading_seconds += now - cache->in_use_since;
    cache->in_use_since = now;
}

static void fail_load(expert_load *load, const q3_error *error)
{
    if (!load->failed)
        load->error = *error;
    load->failed = true;
}

static void close_load(expert_load *load)
{
    q3_file_close(&load->file);
    q3_taking_destroy(load->taking);
    load->taking = NULL;
}

static void open_load(q3_expert_cache *cache, expert_load *load)
{
    q3_error error;
    load->state = LOAD_OPENING;
    pthread_mutex_unlock(&cache->lock);
    const bool ok =
        q3_model_open_expert(cache->model, load->form, load->layer, load->expert, cache->direct,
                             load->memory, &load->file, &load->image, &load->taking, &error);
    pthread_mutex_lock(&cache->lock);
    load->state = LOAD_READING;
    if (!ok)
        fail_load(load, &error);
    // The other pieces are for everybody.
    else if (load->file.size > PIECE_BYTES)
        pthread_cond_broadcast(&cache->work);
}

// Pieces of a file are all as long, but for the last.
static size_t piece_bytes(uint64_t file_bytes)
{
    const uint64_t count = (file_bytes - 1) / PIECE_BYTES + 1, bytes = (file_bytes - 1) / count + 1;
    return (size_t)(bytes + Q3_DIRECT_ALIGNMENT - 1) / Q3_DIRECT_ALIGNMENT * Q3_DIRECT_ALIGNMENT;
}

static void read_piece(q3_expert_cache *cache, expert_load *load, piece *under_way)
{
    q3_error error;
    const uint64_t offset = load->given, rest = load->file.size - offset;
    const size_t most = piece_bytes(load->file.size), size = rest < most ? (size_t)rest : most;
    load->given += size;
    *under_way = (piece){.load = load, .offset = offset};
    pthread_mutex_unlock(&cache->lock);
    const bool ok =
        q3_file_read_piece(&load->file, offset, load->memory + load->image + offset, size, &error);
    pthread_mutex_lock(&cache->lock);
    *under_way = (piece){0};
    if (ok)
        cache->counts.delivered += size;
    else
        fail_load(load, &error);
}

// Takes what has arrived.
static void take_load(q3_expert_cache *cache, expert_load *load, q3_frame_reader *reader)
{
    q3_error error;
    const bool decodes = load->file.size == 0;
    const uint64_t size = q3_model_expert_file_bytes(cache->model, load->layer, load->expert);
    const uint64_t bytes = decodes ? size : arrived(cache, load);
    bool ok = true;
    load->in_taking = true;
    load->result.number = load->expert;
    if (!cache->only_reads) {
        pthread_mutex_unlock(&cache->lock);
        ok = q3_model_take_expert(load->taking, bytes, reader, &load->result, &error);
        pthread_mutex_lock(&cache->lock);
        cache->counts.delivered += decodes && ok ? size : 0;
    }
    load->in_taking = false;
    load->taken = bytes;
    if (!ok)
        fail_load(load, &error);
    else if (bytes == size)
        load->state = LOAD_DONE;
}

static void read_load(q3_expert_cache *cache, expert_load *load, unsigned thread)
{
    cache->reading++;
    note_use(cache);
    if (load->state == LOAD_NEW)
        open_load(cache, load);
    if (has_work(load, LOAD_READING))
        read_piece(cache, load, &cache->pieces[thread]);
    else if (load->file.size == 0 && !load->failed && !load->dropped)
        take_load(cache, load, &cache->frame_readers[thread]);
    cache->reading--;
    note_use(cache);
    // This thread may have another piece to read.
    if (can_take(cache, load))
        pthread_cond_signal(&cache->work);
}

static void work_on(q3_expert_cache *cache, work next, unsigned thread)
{
    expert_load *load = next.load;
    load->busy++;
    if (next.reads)
        read_load(cache, load, thread);
    else
        take_load(cache, load, &cache->frame_readers[thread]);
    if (--load->busy)
        return;
    if (load->failed)
        load->state = LOAD_FAILED;
    if (load->state < LOAD_DONE && !load->dropped)
        return;
    close_load(load);
    for (unsigned i = 0; i < cache->ahead_count; i++)
        if (load == &cache->ahead[i].load && load->dropped && !cache->ahead[i].asked_for)
            cache->ahead[i].used = false;
    pthread_cond_signal(&cache->arrival);
}

// The first form of the kernel's struct sched_attr, which C libraries before glibc 2.41 do not have
// and whose header of the kernel's cannot be included beside theirs.
typedef struct scheduling {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period; // nanoseconds
} scheduling;

// Lets the thread go before those that compute as soon as it is woken: it has little to do then,
// and until it is done the disk has less to do, or nothing. A short time slice does that without
// privileges in Linux 6.12 and later (sched_setattr(2)); older ones ignore it.
static void ask_for_short_slices(void)
{
    enum { SLICE_NS = 100000 };
    scheduling mine = {0};
    if (syscall(SYS_sched_getattr, 0, &mine, sizeof mine, 0) == 0 && mine.policy == SCHED_OTHER) {
        mine.runtime = SLICE_NS;
        (void)syscall(SYS_sched_setattr, 0, &mine, 0);
    }
}

static void *run_reader(void *argument)
{
    q3_expert_cache *cache = argument;
    ask_for_short_slices();
    pthread_mutex_lock(&cache->lock);
    const unsigned thread = cache->started++;
    while (!cache->closing) {
        const work next = find_work(cache);
        if (next.load)
            work_on(cache, next, thread);
        else
            pthread_cond_wait(&cache->work, &cache->lock);
    }
    pthread_mutex_unlock(&cache->lock);
    return NULL;
}

uint64_t q3_expert_threads_bytes(const q3_model *model, unsigned threads)
{
    return threads * q3_region_part(q3_model_block_bytes(model), 1);
}

static bool start_readers(q3_expert_cache *cache, unsigned readers, q3_error *err)
{
    const unsigned count = cache->threads_wanted = q3_expert_threads(readers);
    cache->readers = readers;
    cache->threads = q3_alloc_zeroed(count, sizeof *cache->threads, err);
    cache->frame_readers =
        cache->threads ? q3_alloc_zeroed(count, sizeof *cache->frame_readers, err) : NULL;
    cache->pieces =
        cache->frame_readers ? q3_alloc_zeroed(count, sizeof *cache->pieces, err) : NULL;
    if (!cache->pieces)
        return false;
    const uint64_t block = q3_model_block_bytes(cache->model);
    if (block &&
        !q3_region_create(q3_expert_threads_bytes(cache->model, count), &cache->blocks, err))
        return false;
    for (unsigned i = 0; i < count; i++) {
        if (!(cache->frame_readers[i].coder = q3_coder_create(err)))
            return false;
        if (block)
            cache->frame_readers[i].block = q3_region_take(&cache->blocks, block);
    }
    // Readers need little stack, and there may be many.
    enum { STACK_BYTES = 512 << 10 };
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    int error = 0;
    while (!error && cache->thread_count < count) {
        error =
            pthread_create(&cache->threads[cache->thread_count], &attributes, run_reader, cache);
        cache->thread_count += !error;
    }
    pthread_attr_destroy(&attributes);
    return !error || q3_fail(err, Q3_FAILED, "cannot start reader %u of %u: %s",
                             cache->thread_count + 1, count, strerror(error));
}

static void stop_readers(q3_expert_cache *cache)
{
    pthread_mutex_lock(&cache->lock);
    cache->closing = true;
    pthread_cond_broadcast(&cache->work);
    pthread_mutex_unlock(&cache->lock);
    for (unsigned i = 0; i < cache->thread_count; i++)
        pthread_join(cache->threads[i], NULL);
    for (unsigned i = 0; i < cache->ahead_count; i++)
        close_load(&cache->ahead[i].load);
    for (unsigned i = 0; cache->frame_readers && i < cache->threads_wanted; i++) {
        q3_coder_destroy(cache->frame_readers[i].coder);
        free(cache->frame_readers[i].stored);
    }
    q3_region_destroy(&cache->blocks);
    free(cache->frame_readers);
    free(cache->pieces);
    free(cache->threads);
}

// ---- making ----

void q3_expert_cache_slots(const q3_model *model, const bool *members, uint64_t *slot_bytes)
{
    const q3_config *config = model->config;
    uint64_t largest = 0;
    for (uint32_t i = 0; i < config->num_hidden_layers; i++) {
        slot_bytes[i] = 0;
        for (uint32_t j = 0; j < config->num_experts; j++) {
            const size_t at = (size_t)i * config->num_experts + j;
            const uint64_t bytes =
                members[at] ? q3_model_expert_bytes(model, model->form, i, j) : 0;
            if (bytes > slot_bytes[i])
                slot_bytes[i] = bytes;
        }
        if (slot_bytes[i] > largest)
            largest = slot_bytes[i];
    }
    for (uint32_t i = 0; i < config->num_hidden_layers; i++)
        if (slot_bytes[i] > largest - largest / 16)
            slot_bytes[i] = largest;
}

bool q3_expert_cache_create(const q3_model *model, const q3_expert_cache_options *options,
                            const uint32_t *slots, const uint64_t *slot_bytes,
                            q3_expert_cache **result, q3_error *err)
{
    *result = NULL;
    const q3_config *config = model->config;
    q3_expert_cache *cache = q3_alloc_zeroed(1, sizeof *cache, err);
    if (!cache)
        return false;
    cache->model = model;
    cache->direct = options->direct;
    pthread_mutex_init(&cache->lock, NULL);
    pthread_cond_init(&cache->work, NULL);
    pthread_cond_init(&cache->arrival, NULL);
    size_t total = 0;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < config->num_hidden_layers; i++) {
        total += slots[i];
        bytes += slots[i] * slot_bytes[i];
        if (slot_bytes[i] > cache->ahead_bytes)
            cache->ahead_bytes = slot_bytes[i];
    }
    cache->ahead_count = options->ahead;
    cache->passing_count = options->passing;
    const uint64_t passing_bytes = options->passing ? q3_model_passing_bytes(model) : 0;
    bytes += options->ahead * cache->ahead_bytes + options->passing * passing_bytes;
    const size_t experts = (size_t)config->num_hidden_layers * config->num_experts;
    bool ok =
        (cache->layers = q3_alloc_zeroed(config->num_hidden_layers, sizeof *cache->layers, err)) &&
        (cache->slots = q3_alloc_zeroed(total, sizeof *cache->slots, err)) &&
        (cache->passing = q3_alloc_zeroed(options->passing, sizeof *cache->passing, err)) &&
        (cache->scores = q3_alloc_zeroed(experts, sizeof *cache->scores, err)) &&
        (cache->met = q3_alloc_zeroed(experts, sizeof *cache->met, err)) &&
        (cache->group = q3_alloc_zeroed(config->num_experts, sizeof *cache->group, err)) &&
        (cache->group_slots =
             q3_alloc_zeroed(config->num_experts, sizeof *cache->group_slots, err)) &&
        (cache->loads = q3_alloc_zeroed(config->num_experts, sizeof *cache->loads, err)) &&
        (cache->wanted = q3_alloc_zeroed(config->num_experts, sizeof *cache->wanted, err)) &&
        (cache->missing = q3_alloc_zeroed(config->num_experts, sizeof *cache->missing, err)) &&
        (cache->passes = q3_alloc_zeroed(config->num_experts, sizeof *cache->passes, err)) &&
        q3_region_create(bytes, &cache->memory, err) && start_readers(cache, options->readers, err);
    if (!ok) {
        q3_expert_cache_destroy(cache);
        return false;
    }
    slot *next = cache->slots;
    for (uint32_t i = 0; i < config->num_hidden_layers; i++) {
        cache->layers[i] = (layer_set){.slots = next,
                                       .count = slots[i],
                                       .slot_bytes = slot_bytes[i],
                                       .scores = cache->scores + (size_t)i * config->num_experts};
        for (uint32_t j = 0; j < slots[i]; j++, next++)
            *next = (slot){.expert = {.number = EMPTY},
                           .memory = q3_region_take(&cache->memory, slot_bytes[i])};
    }
    for (unsigned i = 0; i < cache->ahead_count; i++)
        cache->ahead[i].memory = q3_region_take(&cache->memory, cache->ahead_bytes);
    for (unsigned i = 0; i < cache->passing_count; i++)
        cache->passing[i].memory = q3_region_take(&cache->memory, passing_bytes);
    *result = cache;
    return true;
}

void q3_expert_cache_destroy(q3_expert_cache *cache)
{
    if (!cache)
        return;
    stop_readers(cache);
    pthread_cond_destroy(&cache->work);
    pthread_cond_destroy(&cache->arrival);
    pthread_mutex_destroy(&cache->lock);
    q3_region_destroy(&cache->memory);
    free(cache->layers);
    free(cache->slots);
    free(cache->passing);
    free(cache->scores);
    free(cache->met);
    free(cache->group);
    free(cache->group_slots);
    free(cache->loads);
    free(cache->wanted);
    free(cache->missing);
    free(cache->passes);
    free(cache);
}

q3_expert_counts q3_expert_cache_counts(q3_expert_cache *cache)
{
    pthread_mutex_lock(&cache->lock);
    q3_expert_counts counts = cache->counts;
    if (cache->in_use)
        counts.reading_seconds += q3_now() - cache->in_use_since;
    pthread_mutex_unlock(&cache->lock);
    return counts;
}

// ---- slots ----

static slot *find_slot(const layer_set *set, uint32_t expert)
{
    for (uint32_t i = 0; i < set->count; i++)
        if (set->slots[i].expert.number == expert)
            return &set->slots[i];
    return NULL;
}

// Is `a` to be given up rather than `b`? What this visit has used goes last and in the order of
// use: which of it is busy depends on the readers' pace, and the choice must not.
static bool goes_before(const layer_set *set, uint64_t visit, const slot *a, const slot *b)
{
    const bool a_now = a->visit == visit, b_now = b->visit == visit;
    if (a_now != b_now)
        return b_now;
    if (!a_now && set->scores[a->expert.number] != set->scores[b->expert.number])
        return set->scores[a->expert.number] < set->scores[b->expert.number];
    return a->last_use < b->last_use;
}

// The slot to be given up, an empty one if there is, or NULL when all are in use.
static slot *find_slot_to_fill(const layer_set *set, uint64_t visit)
{
    slot *worst = NULL;
    for (uint32_t i = 0; i < set->count; i++) {
        slot *other = &set->slots[i];
        if (other->busy)
            continue;
        if (other->expert.number == EMPTY)
            return other;
        if (!worst || goes_before(set, visit, other, worst))
            worst = other;
    }
    return worst;
}

// ---- expecting ----

static ahead_load *find_ahead(q3_expert_cache *cache, uint32_t layer, uint32_t expert)
{
    for (unsigned i = 0; i < cache->ahead_count; i++) {
        ahead_load *ahead = &cache->ahead[i];
        if (ahead->used && !ahead->load.dropped && ahead->load.layer == layer &&
            ahead->load.expert == expert)
            return ahead;
    }
    return NULL;
}

// Forgets what nobody has asked for; while readers are at work on it, its memory stays taken.
static void drop_ahead(q3_expert_cache *cache, ahead_load *ahead)
{
    expert_load *load = &ahead->load;
    if (!load->dropped && load->state != LOAD_NEW) {
        cache->counts.ahead++;
        // What is decoded as it is read has no pieces.
        cache->counts.ahead_unused_bytes +=
            load->state == LOAD_DONE
                ? q3_model_expert_file_bytes(cache->model, load->layer, load->expert)
                : load->given;
    }
    load->dropped = true;
    if (load->busy)
        return;
    close_load(load);
    ahead->used = false;
}

static ahead_load *find_free_ahead(q3_expert_cache *cache)
{
    for (unsigned i = 0; i < cache->ahead_count; i++)
        if (!cache->ahead[i].used)
            return &cache->ahead[i];
    return NULL;
}

bool q3_expert_cache_expects(const q3_expert_cache *cache, uint32_t layer)
{
    const layer_set *set = &cache->layers[layer];
    return cache->ahead_count > 0 && set->slot_bytes == cache->ahead_bytes &&
           set->count < cache->model->config->num_experts;
}

void q3_expert_cache_expect(q3_expert_cache *cache, uint32_t layer, const uint32_t *experts,
                            uint32_t count, bool after_visit)
{
    const layer_set *set = &cache->layers[layer];
    pthread_mutex_lock(&cache->lock);
    cache->holding = after_visit;
    for (unsigned i = 0; i < cache->ahead_count; i++) {
        ahead_load *ahead = &cache->ahead[i];
        if (!ahead->used || ahead->load.layer != layer)
            continue;
        bool listed = false;
        for (uint32_t j = 0; j < count && !listed; j++)
            listed = ahead->load.expert == experts[j];
        if (!listed || ahead->load.state == LOAD_NEW)
            drop_ahead(cache, ahead);
    }
    for (uint32_t i = 0; i < count; i++) {
        if (find_slot(set, experts[i]) || find_ahead(cache, layer, experts[i]))
            continue;
        ahead_load *ahead = find_free_ahead(cache);
        if (!ahead)
            break;
        ahead->used = true;
        ahead->asked_for = false;
        ahead->rank = i;
        ahead->load = (expert_load){.layer = layer,
                                    .expert = experts[i],
                                    .form = cache->model->form,
                                    .memory = ahead->memory,
                                    .file = {.fd = -1}};
    }
    if (find_work(cache).load)
        pthread_cond_signal(&cache->work);
    pthread_mutex_unlock(&cache->lock);
}

// ---- visiting ----

// One call of q3_expert_cache_visit.
typedef struct visiting {
    q3_expert_cache *cache;
    layer_set *set;
    uint32_t layer;
    uint32_t missing, asked; // of cache->missing
    uint32_t passing;        // of the missing
    uint32_t collected;      // of cache->wanted
    uint32_t in_group;
    uint64_t first_use; // the number of the first missing one's
} visiting;

static void add_to_group(visiting *v, slot *from, uint64_t use)
{
    from->last_use = use;
    from->visit = v->cache->visits;
    from->busy = true;
    v->cache->group_slots[v->in_group] = from;
    v->cache->group[v->in_group++] = from->expert;
}

// A load of the visit's next missing expert: the one under way, if it was expected.
static expert_load *make_load(visiting *v, slot *to)
{
    q3_expert_cache *cache = v->cache;
    const uint32_t expert = cache->missing[v->asked];
    ahead_load *ahead = find_ahead(cache, v->layer, expert);
    // What could not be read ahead is tried again, for the visit to fail with.
    if (!ahead || ahead->load.failed) {
        expert_load *load = &cache->loads[v->asked];
        *load = (expert_load){.layer = v->layer,
                              .expert = expert,
                              .form = cache->passes[v->asked] ? Q3_FORM_STORED : cache->model->form,
                              .memory = to->memory,
                              .file = {.fd = -1}};
        return load;
    }
    if (ahead->load.state != LOAD_NEW) {
        cache->counts.ahead++;
        cache->counts.ahead_used++;
    }
    ahead->asked_for = true;
    ahead->memory = to->memory;
    to->memory = ahead->load.memory;
    return &ahead->load;
}

static slot *find_passing(const q3_expert_cache *cache)
{
    for (unsigned i = 0; i < cache->passing_count; i++)
        if (!cache->passing[i].busy)
            return &cache->passing[i];
    return NULL;
}

// A slot for the visit's next missing expert, or NULL.
static slot *find_place(const visiting *v)
{
    const q3_expert_cache *cache = v->cache;
    return cache->passes[v->asked] ? find_passing(cache) : find_slot_to_fill(v->set, cache->visits);
}

// Asks the readers for as many of the missing experts as there are slots for.
static void ask(visiting *v)
{
    q3_expert_cache *cache = v->cache;
    slot *to;
    const uint32_t before = v->asked;
    pthread_mutex_lock(&cache->lock);
    while (v->asked < v->missing && (to = find_place(v))) {
        // Until it is read whole, the slot holds nothing that anybody could find.
        to->expert.number = EMPTY;
        to->busy = true;
        expert_load *load = cache->wanted[v->asked] = make_load(v, to);
        load->to = to;
        load->use = v->first_use + v->asked++;
    }
    cache->asked = v->asked;
    cache->holding = false;
    note_use(cache);
    if (v->asked > before || find_work(cache).load)
        pthread_cond_broadcast(&cache->work);
    pthread_mutex_unlock(&cache->lock);
}

// What may be taken over now: while slots are still to be given up for others, what has been asked
// for first, so that which expert a slot holds afterwards does not depend on the readers' pace;
// then whatever is there.
static expert_load *find_arrived(const visiting *v)
{
    q3_expert_cache *cache = v->cache;
    for (uint32_t i = 0; i < v->asked; i++) {
        expert_load *load = cache->wanted[i];
        if (load->collected)
            continue;
        if (load->busy == 0 && (load->state == LOAD_DONE || load->state == LOAD_FAILED))
            return load;
        if (v->asked < v->missing)
            return NULL;
    }
    return NULL;
}

// Takes over what has been read. Waits for the first. False after a failure.
static bool collect(visiting *v)
{
    q3_expert_cache *cache = v->cache;
    expert_load *load;
    pthread_mutex_lock(&cache->lock);
    if (!find_arrived(v)) {
        const double started = q3_now();
        while (!find_arrived(v))
            pthread_cond_wait(&cache->arrival, &cache->lock);
        cache->counts.waiting_seconds += q3_now() - started;
    }
    bool ok = true;
    while (ok && (load = find_arrived(v))) {
        ok = load->state == LOAD_DONE;
        if (!ok)
            break;
        load->collected = true;
        load->to->expert = load->result;
        cache->counts.bytes_read +=
            q3_model_expert_file_bytes(cache->model, load->layer, load->expert);
        add_to_group(v, load->to, load->use);
        v->collected++;
    }
    pthread_mutex_unlock(&cache->lock);
    return ok;
}

static bool visit_group(visiting *v, q3_expert_visit *visit, void *context, q3_error *err)
{
    const uint32_t count = v->in_group;
    const bool ok = count == 0 || visit(context, v->cache->group, count, err);
    for (uint32_t i = 0; i < count; i++)
        v->cache->group_slots[i]->busy = false;
    v->in_group = 0;
    return ok;
}

// After a failure: lets what is under way arrive, and tells of the first expert that could not be
// read.
static void give_up(visiting *v, q3_error *err)
{
    q3_expert_cache *cache = v->cache;
    pthread_mutex_lock(&cache->lock);
    for (uint32_t i = 0; i < v->asked; i++)
        cache->wanted[i]->dropped = true;
    for (uint32_t i = v->asked; i-- > 0;) {
        expert_load *load = cache->wanted[i];
        while (load->busy)
            pthread_cond_wait(&cache->arrival, &cache->lock);
        close_load(load);
        if (load->collected)
            continue;
        load->to->busy = false;
        load->to->expert.number = EMPTY;
        if (load->failed)
            *err = load->error;
    }
    pthread_mutex_unlock(&cache->lock);
    for (uint32_t i = 0; i < v->in_group; i++)
        cache->group_slots[i]->busy = false;
}

// Nothing of the visit is under way any more; what was expected of the layer and not asked for was
// a mistake.
static void end_visit(visiting *v)
{
    q3_expert_cache *cache = v->cache;
    pthread_mutex_lock(&cache->lock);
    cache->asked = 0;
    note_use(cache);
    for (unsigned i = 0; i < cache->ahead_count; i++) {
        ahead_load *ahead = &cache->ahead[i];
        if (ahead->used && ahead->asked_for)
            ahead->used = false;
        else if (ahead->used && ahead->load.layer == v->layer)
            drop_ahead(cache, ahead);
    }
    pthread_mutex_unlock(&cache->lock);
}

static bool record_misses(const visiting *v, q3_error *err)
{
    q3_misses *to = v->cache->record;
    if (!to || v->missing == 0)
        return true;
    if (!q3_grow(&to->list, &to->room, to->count + v->missing, sizeof *to->list, err))
        return false;
    for (uint32_t i = 0; i < v->missing; i++)
        to->list[to->count++] =
            (q3_miss){.layer = v->layer, .expert = v->cache->missing[i], .first = i == 0};
    return true;
}

bool q3_expert_cache_visit(q3_expert_cache *cache, uint32_t layer, const uint32_t *experts,
                           uint32_t count, bool may_pass, q3_expert_visit *visit, void *context,
                           q3_error *err)
{
    visiting v = {.cache = cache, .set = &cache->layers[layer], .layer = layer};
    cache->visits++;
    q3_scores_fade(v.set->scores, cache->model->config->num_experts);
    bool *met = cache->met + (size_t)layer * cache->model->config->num_experts;
    for (uint32_t i = 0; i < count; i++) {
        q3_score_use(&v.set->scores[experts[i]]);
        slot *resident = find_slot(v.set, experts[i]);
        if (resident) {
            add_to_group(&v, resident, ++cache->uses);
        } else {
            const bool passes = may_pass && cache->passing_count && !met[experts[i]];
            v.passing += passes;
            cache->passes[v.missing] = passes;
            cache->missing[v.missing++] = experts[i];
        }
        met[experts[i]] = true;
    }
    if (!record_misses(&v, err)) {
        for (uint32_t i = 0; i < v.in_group; i++)
            cache->group_slots[i]->busy = false;
        return false;
    }
    v.first_use = cache->uses + 1;
    cache->uses += v.missing;
    pthread_mutex_lock(&cache->lock);
    cache->counts.hits += v.in_group;
    cache->counts.misses += v.missing;
    cache->counts.passed += v.passing;
    pthread_mutex_unlock(&cache->lock);
    ask(&v);
    bool ok = visit_group(&v, visit, context, err);
    while (ok && v.collected < v.missing) {
        ask(&v);
        ok = collect(&v) && visit_group(&v, visit, context, err);
    }
    if (!ok)
        give_up(&v, err);
    end_visit(&v);
    return ok;
}

void q3_expert_cache_mark(const q3_expert_cache *cache, uint32_t layer, bool *resident)
{
    const layer_set *set = &cache->layers[layer];
    memset(resident, 0, cache->model->config->num_experts * sizeof *resident);
    for (uint32_t i = 0; i < set->count; i++)
        if (set->slots[i].expert.number != EMPTY)
            resident[set->slots[i].expert.number] = true;
}

// ---- reading again ----

void q3_expert_cache_record(q3_expert_cache *cache, q3_misses *misses)
{
    cache->record = misses;
}

static void empty_slots(layer_set *set)
{
    for (uint32_t i = 0; i < set->count; i++)
        set->slots[i].expert.number = EMPTY;
}

static void set_only_reads(q3_expert_cache *cache, bool only_reads)
{
    pthread_mutex_lock(&cache->lock);
    cache->only_reads = only_reads;
    pthread_mutex_unlock(&cache->lock);
}

static void drop_all_ahead(q3_expert_cache *cache)
{
    pthread_mutex_lock(&cache->lock);
    for (unsigned i = 0; i < cache->ahead_count; i++)
        if (cache->ahead[i].used)
            drop_ahead(cache, &cache->ahead[i]);
    for (unsigned i = 0; i < cache->ahead_count; i++)
        while (cache->ahead[i].used)
            pthread_cond_wait(&cache->arrival, &cache->lock);
    pthread_mutex_unlock(&cache->lock);
}

static bool visit_nothing(void *context, const q3_expert *group, uint32_t count, q3_error *err)
{
    (void)context;
    (void)group;
    (void)count;
    return q3_check_interrupt(err);
}

bool q3_expert_cache_replay(q3_expert_cache *cache, const q3_misses *misses, double *rate,
                            q3_error *err)
{
    *rate = 0;
    drop_all_ahead(cache);
    cache->record = NULL;
    const q3_expert_counts before = q3_expert_cache_counts(cache);
    uint32_t *experts = q3_alloc(cache->model->config->num_experts, sizeof *experts, err);
    bool ok = experts != NULL;
    set_only_reads(cache, true);
    for (size_t i = 0; ok && i < misses->count;) {
        const uint32_t layer = misses->list[i].layer;
        uint32_t count = 0;
        do
            experts[count++] = misses->list[i++].expert;
        while (i < misses->count && !misses->list[i].first);
        empty_slots(&cache->layers[layer]);
        ok = q3_expert_cache_visit(cache, layer, experts, count, false, visit_nothing, NULL, err);
    }
    set_only_reads(cache, false);
    free(experts);
    for (uint32_t i = 0; i < cache->model->config->num_hidden_layers; i++)
        empty_slots(&cache->layers[i]);
    const q3_expert_counts after = q3_expert_cache_counts(cache);
    if (ok && after.delivered > before.delivered)
        *rate = (double)(after.delivered - before.delivered) /
                (after.reading_seconds - before.reading_seconds);
    return ok;
}
