// SPDX-License-Identifier: Apache-2.0
//
// The inference engine, for any program that wants text from a pack directory:
//
//   q3_engine_open     opens a pack, decides what fits into memory, loads what every token needs
//   q3_session_create  starts a conversation: a KV cache with no positions
//   q3_session_feed    runs tokens through the model, behind those fed before
//   q3_session_logits  what the model says comes next
//
// Ids come from tokenizer.h, the next id from sampler.h. An engine and its sessions belong to one
// thread at a time; the engine uses threads of its own. All results are the same to the bit for any
// number of threads, any memory budget, any batch and any codec of the pack, and up to the level
// AVX-512 however a text is cut into feeds (but see resident_bias).
#ifndef Q3_RUNTIME_ENGINE_H
#define Q3_RUNTIME_ENGINE_H

#include "base/error.h"
#include "io_mode.h"
#include "misses.h"
#include "model/config.h"
#include "set.h"
#include "trace.h"

typedef struct q3_engine q3_engine;
typedef struct q3_session q3_session;

// The form of weights in memory (see model.h). Left open it is bf12 if the processor has products
// for it and a fifth of the experts fit the budget; without such products plain where all of them
// fit; else stored.
typedef enum q3_engine_weights {
    Q3_WEIGHTS_AUTO,
    Q3_WEIGHTS_BF12,
    Q3_WEIGHTS_STORED,
    Q3_WEIGHTS_PLAIN
} q3_engine_weights;

// As --weights has it: "auto", "bf12", "stored", "plain".
const char *q3_weights_name(q3_engine_weights weights);

typedef struct q3_engine_options {
    unsigned threads;     // 0: one for each core
    uint32_t context;     // positions of a session; 0: 4096, or the model's maximum if that is less
    uint32_t sessions;    // that may exist at once and are counted in the budget; 0: 1
    uint64_t memory;      // budget in bytes for all that the process needs; 0: all the experts if
                          // three quarters of the available memory take them, else what these take
    uint32_t kept_logits; // rows of vocab_size logits that the caller keeps, counted in the budget
    bool tokenizer;       // the caller opens the pack's tokenizer and a sampler, counted too
    uint32_t batch;       // tokens that go through the layers together; 0: 512, 1024 or 2048, what
                          // a 32nd of the budget has room for
    bool narrow_kv;       // keys and values in bf16 instead of float32
    q3_engine_weights weights;
    // How experts are read, and by how many threads while others compute. What is left open
    // (Q3_IO_AUTO, 0) is decided by a probe of the disk at the start, half a second long, when the
    // budget does not hold all experts; else they are read through the page cache by 4 threads.
    q3_io_mode io;
    unsigned readers;
    const char *pool; // a pool file (see pool/pool.h), or NULL
    // The pool's experts are preferred, by a bias added to their logits for the choice, and the
    // others the pack holds are allowed as well. Needs a pool.
    bool soft_pool;
    float pool_bias;
    const char *router_bias; // a file of biases (see router_bias.h), or NULL
    // Added to the logits of the experts that are in memory, for the choice only; 0 for none. With
    // it the results do depend on the budget, on what was fed before, and on how it was cut. No
    // expert passes then.
    float resident_bias;
} q3_engine_options;

// Opens a pack directory. A budget in which not even one expert a layer fits is Q3_REFUSED, and the
// message says how much is needed; so is a context beyond the model's.
bool q3_engine_open(const char *directory, const q3_engine_options *options, q3_engine **engine,
                    q3_error *err);
void q3_engine_close(q3_engine *engine); // after its sessions; NULL is fine

// Where the memory goes, in bytes. `process` is what a program takes beside the engine: its code,
// the tokenizer if it has one, the description of the pack.
typedef struct q3_memory_plan {
    uint64_t process, dense, embedding, kv_cache, scratch, experts, passing;
    uint64_t total;           // the sum
    uint64_t minimum;         // the sum with one expert a layer
    uint64_t budget;          // that was given or found
    bool all_fit;             // there is a slot for each expert that may be chosen
    unsigned ahead;           // experts that may be read ahead; their memory is in `experts`
    unsigned passing_experts; // that may pass at the same time where all fit (expert_cache.h);
                              // their memory is `passing`
} q3_memory_plan;

typedef struct q3_engine_info {
    const q3_config *config;
    uint32_t context; // positions of a session
    uint32_t batch;   // tokens that go through the layers together
    unsigned threads;
    q3_engine_weights weights;     // never Q3_WEIGHTS_AUTO
    const char *kernels;           // the level of processor that they are for
    uint64_t experts;              // in the model, all layers together
    uint64_t held_experts;         // that the pack has
    uint64_t pool_named;           // in the pool file, held or not; 0 without one
    uint64_t pool_experts;         // held, and in the pool: those that may be chosen, or that are
                                   // preferred
    uint32_t slots_min, slots_max; // expert slots a layer
    q3_io_mode io;                 // how experts are read, never Q3_IO_AUTO
    unsigned readers;              // threads that read them
    bool io_probed;                // a probe has decided that, as far as it was left open
    q3_memory_plan memory;
} q3_engine_info;

const q3_engine_info *q3_engine_describe(const q3_engine *engine);

// The pack directory.
const q3_set *q3_engine_pack(const q3_engine *engine);

// Reads experts until all slots are filled (or all that may be chosen are there), so that what
// comes next is not held up by the disk.
bool q3_engine_preload(q3_engine *engine, q3_error *err);

// A small file of the checkpoint that came along in the pack (generation_config.json, the
// tokenizer's), its hash checked; the caller frees *data. One that the pack does not have is
// Q3_INCOMPLETE.
bool q3_engine_load_file(const q3_engine *engine, const char *name, char **data, size_t *size,
                         q3_error *err);

// What routers wanted (see routing.h) that is outside the pool or not in the pack.
typedef struct q3_outside {
    uint64_t routed; // tokens, once for each layer that routed them
    double sum;      // of their shares, each at most 1
} q3_outside;

// Counted since the engine was opened.
typedef struct q3_engine_statistics {
    uint64_t tokens, batches;            // fed, all sessions together
    uint64_t expert_hits, expert_misses; // experts that a batch needed in a layer
    uint64_t experts_passed;             // of the misses; see expert_cache.h
    uint64_t expert_bytes;               // read for them from the pack
    double expert_seconds;               // in which there was nothing to compute but theirs
    uint64_t delivered_bytes;            // that the reading threads got, for what is needed or not
    double reading_seconds;              // in which there was something to read, or a thread at it
    // Experts that were read ahead, whole or in part, of these the ones that were needed then, and
    // what was read of the others, which expert_bytes does not count.
    uint64_t experts_ahead, experts_ahead_used, unused_bytes;
    uint64_t embedding_bytes; // read from the pack
    uint64_t computed_bytes;  // weights, keys and values gone through, see forward.h
    q3_outside outside;       // of all layers together
} q3_engine_statistics;

q3_engine_statistics q3_engine_count(const q3_engine *engine);

// From now on, adds what is missing when a layer needs it to the list; NULL ends that.
void q3_engine_record(q3_engine *engine, q3_misses *misses);

// What the disk gives for these reads alone, bytes a second: they are done again by the same
// threads in the same way, but nothing is checked or computed. 0 when nothing can be read so.
// Afterwards no expert is in memory, and nothing is recorded.
bool q3_engine_replay(q3_engine *engine, const q3_misses *misses, double *rate, q3_error *err);

// q3_engine_statistics.outside of one layer.
q3_outside q3_engine_outside(const q3_engine *engine, uint32_t layer);

// Changes the pool between feeds: of members ([layer][expert]; NULL: all) those that the pack
// holds. Experts in memory stay there; the number of slots and what q3_engine_describe says stay as
// they were. A pool of which the pack
// has no expert in some layer is Q3_INCOMPLETE, and the pool is as before.
bool q3_engine_set_pool(q3_engine *engine, const bool *members, q3_error *err);

// Records the experts chosen in all feeds from now on; NULL ends that. The trace stays the
// caller's.
void q3_engine_set_trace(q3_engine *engine, q3_trace_writer *trace);

// ---- sessions ----

bool q3_session_create(q3_engine *engine, q3_session **session, q3_error *err);
void q3_session_destroy(q3_session *session); // NULL is fine

// How many tokens it has been fed, and how many it takes in all.
uint32_t q3_session_length(const q3_session *session);
uint32_t q3_session_context(const q3_session *session);

// Goes back to the first `length` tokens; more than there are changes nothing. The logits are those
// of the last feed until the next one.
void q3_session_truncate(q3_session *session, uint32_t length);

// What happens inside, for whoever wants to see it. Every function may be NULL. What the pointers
// point to is good during the call.
typedef struct q3_observer {
    void *context;
    // The last token's hidden state, hidden_size numbers: row 0 is its embedding, row i + 1 what
    // layer i has made of it, and the row after the last layer's the final norm's output.
    void (*hidden)(void *context, uint32_t row, const float *values);
    // The experts chosen for the token at a position, ascending, and their weights.
    void (*routed)(void *context, uint32_t position, uint32_t layer, const uint32_t *experts,
                   const float *weights, uint32_t count);
    // The softmax of the router's logits over all the model's experts (held, in the pool, or
    // neither), without any bias.
    void (*wanted)(void *context, uint32_t position, uint32_t layer, const float *probabilities,
                   uint32_t count);
    // As routed, once the experts are computed: with the L2 norm of what each gave for the token,
    // before it is multiplied by its weight.
    void (*computed)(void *context, uint32_t position, uint32_t layer, const uint32_t *experts,
                     const float *weights, const float *norms, uint32_t count);
    // The logits at a position, vocab_size numbers. Positions ascend.
    void (*logits)(void *context, uint32_t position, const float *logits);
} q3_observer;

// Runs `count` tokens through the model. Of all but the last, the last layer computes no more than
// keys and values, unless a trace is recorded or the observer sees logits or experts: nothing else
// depends on it. observer may be NULL. Ids at or above the vocabulary's size and tokens beyond the
// context are Q3_USAGE. After a failure, or an interrupt (Q3_INTERRUPTED, see base/interrupt.h),
// the session is as it was before, but for its logits.
bool q3_session_feed(q3_session *session, const uint32_t *ids, size_t count,
                     const q3_observer *observer, q3_error *err);

// The logits behind the last token fed, vocab_size numbers; the session's, until its next feed.
const float *q3_session_logits(const q3_session *session);

#endif
