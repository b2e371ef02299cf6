// SPDX-License-Identifier: Apache-2.0
//
// One line on a terminal that says what is being done, how much of it, how fast and how long it
// will take. Nothing is written when standard error is not a terminal.
#ifndef Q3_BASE_PROGRESS_H
#define Q3_BASE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct q3_progress {
    const char *verb; // "extracting"
    const char *unit; // what is counted, "tokens"; NULL: bytes
    uint64_t total, done;
    double started, drawn; // seconds
    unsigned width;
    bool shown;
} q3_progress;

// total in bytes, or in what the caller then sets as the unit; both texts must outlive the
// progress. quiet shows nothing.
void q3_progress_begin(q3_progress *progress, const char *verb, uint64_t total, bool quiet);
// `more` bytes (or units) are done; `what` is the item at work. Draws ten times a second at most.
void q3_progress_add(q3_progress *progress, uint64_t more, const char *what);
// Wipes the line, so that what follows starts at a clean one.
void q3_progress_end(q3_progress *progress);

// Seconds since some fixed moment.
double q3_now(void);

#endif
