// SPDX-License-Identifier: Apache-2.0
//
// A pack opened as far as that goes without reading weights: the model is checked, the experts that
// may be chosen are known, and the memory is shared out. The engine loads and computes from there
// on; a plan (plan.h) tells what it would do.
#ifndef Q3_RUNTIME_OPENED_H
#define Q3_RUNTIME_OPENED_H

#include "budget.h"
#include "probe.h"

enum { Q3_READERS_DEFAULT = 4 };

typedef struct q3_opened {
    q3_team team;
    q3_model model;
    q3_expert_pool pool; // as opened
    q3_routing routing;
    q3_embedding *embedding;
    const q3_kernels *kernels;
    q3_budget_request budget;
    uint64_t *slot_bytes; // [layer], of an expert slot
    uint32_t *slots;      // [layer]
    q3_engine_info info;  // all but how experts are read
} q3_opened;

// A budget that is too small is Q3_REFUSED, see q3_engine_open.
bool q3_opened_create(const char *directory, const q3_engine_options *options, q3_opened *opened,
                      q3_error *err);
void q3_opened_destroy(q3_opened *opened); // a zeroed one is fine

// Bytes of the files of all these experts, and their number.
uint64_t q3_opened_expert_files(const q3_opened *opened, uint64_t *count);

// Reads from a sample of the pack's expert files for about so many seconds; see q3_probe_disk.
// Nothing is dropped from the page cache.
bool q3_opened_probe_disk(const q3_opened *opened, double seconds, q3_disk_probe *probe,
                          q3_error *err);

// Seconds that a thread needs to check and unpack an expert that was read, by the first one that
// may be chosen.
bool q3_opened_probe_taking(const q3_opened *opened, double *seconds, q3_error *err);

// What a probe says about how experts are best read, with what the options leave open. The page
// cache is expected to have what memory is available beyond the budget.
q3_io_choice q3_opened_choose_io(const q3_opened *opened, const q3_engine_options *options,
                                 const q3_disk_probe *probe);

#endif
