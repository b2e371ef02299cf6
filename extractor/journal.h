// SPDX-License-Identifier: Apache-2.0
//
// The journal of an unfinished extraction, PACK_DIR/extract.journal: what was asked for, of which
// source, and which pack files are finished. A run that was ended at any moment is taken up by the
// same command; other parameters or another source are refused. It goes when pack.json is written.
//
// It is text: a line that names the format, the request's lines, then one line for each finished
// file, "file PATH SIZE ROOT", appended after the file has its final name. A last line
// without its line end was being written when the run ended, and is ignored.
#ifndef Q3_JOURNAL_H
#define Q3_JOURNAL_H

#include "base/hash.h"
#include "model/tensor.h"

typedef struct q3_journal q3_journal;

// Opens the journal in `directory`, which is created if need be. `request` holds lines that say
// what is asked for and from what, each ended by '\n'. Refused (Q3_REFUSED): a directory with
// pack.json or other files but no journal, a journal of another request, one that another process
// holds.
bool q3_journal_open(const char *directory, const char *request, q3_journal **journal,
                     q3_error *err);
// Closes it and leaves it where it is; NULL is fine.
void q3_journal_close(q3_journal *journal);
// Removes it: the extraction is finished.
bool q3_journal_finish(q3_journal *journal, q3_error *err);

// Was this file finished by an earlier run? Then its size and root.
bool q3_journal_find(const q3_journal *journal, const q3_place *place, uint64_t *size,
                     q3_hash128 *root);
// Records a finished file.
bool q3_journal_record(q3_journal *journal, const q3_place *place, uint64_t size, q3_hash128 root,
                       q3_error *err);

#endif
