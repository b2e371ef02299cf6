// SPDX-License-Identifier: Apache-2.0
//
// The experts in memory: for each layer a set of slots of its own (a token sweeps all the layers,
// so one set for all of them would forget each layer before it comes round again). The expert with
// the lowest score of expert_score.h goes first; replay.h does the same without a model, but that
// nothing passes (below). Against
// least recently used, on conversations and stories recorded from the small test model (128
// experts, top 8), this finds 1 to 7 more experts of 100 in memory at 12 to 24 slots and 2 to 14 at
// 32 to 64; on single short texts it is within one of it. Which is better on other models, a trace
// and q3-run replay tell.
//
// A slot holds an expert in the model's form (model.h). Its memory is first touched when an expert
// is first loaded into it. Each expert's checksums are verified as it is loaded.
//
// The forward pass does not ask for experts one by one. It names all that a layer needs now, and
// the cache calls back with groups of them in the order that suits it: what is resident first,
// while threads of the cache read what is missing, then that, as it arrives.
//
// Where there is room for all experts, one that is asked for the first time passes: it is
// multiplied with as the pack stores it, in memory that the next one is read to, and forgotten.
// Only when it is asked for again it gets its slot. To find and clear fresh memory for it, and to
// make it what the model's form is, takes longer than its first products do, and all that a
// program's first tokens need is needed for the first time. From then on the page cache has its
// file.
//
// While nothing that was asked for is to be read, the threads read ahead what a layer is expected
// to need, to memory beside the slots. It comes into a slot when the layer does ask for it, and
// counts as a miss as ever: which experts are in the slots, hits, misses, and the choice of what
// is given up do not depend on what was expected, nor on the disk's pace.
#ifndef Q3_RUNTIME_EXPERT_CACHE_H
#define Q3_RUNTIME_EXPERT_CACHE_H

#include "misses.h"
#include "model.h"

typedef struct q3_expert_cache q3_expert_cache;

typedef struct q3_expert_counts {
    uint64_t hits, misses;  // experts that a batch needed in a layer: resident, or read
    uint64_t passed;        // of the misses, those that did not get a slot
    uint64_t bytes_read;    // from the pack files, for the misses
    uint64_t delivered;     // bytes that the readers got, for misses or not
    double reading_seconds; // in which there was something asked for to read, or a reader at work
    double waiting_seconds; // in which there was nothing to compute
    // Experts that were read ahead, or in part; of these, those that were then asked for; and the
    // bytes that were read for the others, which are not in bytes_read.
    uint64_t ahead, ahead_used, ahead_unused_bytes;
} q3_expert_counts;

enum { Q3_READERS_MAX = 64, Q3_AHEAD_MAX = 4, Q3_PASSING_MAX = 8 };

typedef struct q3_expert_cache_options {
    unsigned readers; // threads that read at the same time, 1 to Q3_READERS_MAX
    bool direct;      // around the page cache
    unsigned ahead;   // experts that may be read ahead, at most Q3_AHEAD_MAX; memory for each is
                      // that of the largest slot
    unsigned passing; // experts that may pass at the same time, at most Q3_PASSING_MAX, each in
                      // memory of q3_model_passing_bytes; 0: all get a slot at once
} q3_expert_cache_options;

// Threads that so many readers take: one more takes what they have read (q3_model_take_expert). And
// the memory that these threads want beside the slots.
static inline unsigned q3_expert_threads(unsigned readers)
{
    return readers + 1;
}
uint64_t q3_expert_threads_bytes(const q3_model *model, unsigned threads);

// Memory of a slot of each layer: of the largest of the experts in members[layer][expert]. A layer
// in which the pack has none of them gets 0. Layers that need nearly as much as the largest one get
// as much: their slots can change places with what is read ahead.
void q3_expert_cache_slots(const q3_model *model, const bool *members, uint64_t *slot_bytes);

// slots: for each layer, at least 1; slot_bytes: as above, for all experts that will be asked for.
// The model must outlive the cache.
bool q3_expert_cache_create(const q3_model *model, const q3_expert_cache_options *options,
                            const uint32_t *slots, const uint64_t *slot_bytes,
                            q3_expert_cache **cache, q3_error *err);
void q3_expert_cache_destroy(q3_expert_cache *cache); // NULL is fine

// Calls `visit` with groups of the layer's `experts` (ascending, none twice), each expert once; the
// matrices are good during that call. If `may_pass`, those that the layer has not been asked for
// before pass where that is provided for; else all are in their slots afterwards that these have
// room for. Ends with the first failure, of reading or of the visit.
typedef bool q3_expert_visit(void *context, const q3_expert *group, uint32_t count, q3_error *err);
bool q3_expert_cache_visit(q3_expert_cache *cache, uint32_t layer, const uint32_t *experts,
                           uint32_t count, bool may_pass, q3_expert_visit *visit, void *context,
                           q3_error *err);

// Says which experts the layer will probably need, the likeliest first, in place of what was said
// of this layer before. Where nothing can be read ahead, nobody need say anything. Reading begins
// at once or, `after_visit`, when the next visit (of a layer before) has asked for its own.
bool q3_expert_cache_expects(const q3_expert_cache *cache, uint32_t layer);
void q3_expert_cache_expect(q3_expert_cache *cache, uint32_t layer, const uint32_t *experts,
                            uint32_t count, bool after_visit);

q3_expert_counts q3_expert_cache_counts(q3_expert_cache *cache);

// From now on, adds what visits miss to the list; NULL ends that.
void q3_expert_cache_record(q3_expert_cache *cache, q3_misses *misses);

// Reads these experts again to the slots, by the same readers in the same pieces: what a layer
// needed at once together, the next when all that is there. Nothing is checked, decoded, read
// ahead, or computed. *rate is what the disk gave, in bytes a second of the time in which there was
// something to read; what is decoded as it is read has no pieces and delivers nothing here, and 0
// is the rate of nothing. Afterwards all slots are empty, and nothing is recorded.
bool q3_expert_cache_replay(q3_expert_cache *cache, const q3_misses *misses, double *rate,
                            q3_error *err);

// Marks the experts of a layer that are in memory: resident[expert].
void q3_expert_cache_mark(const q3_expert_cache *cache, uint32_t layer, bool *resident);

#endif
