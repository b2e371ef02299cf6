// SPDX-License-Identifier: Apache-2.0
//
// The journal of an unfinished extraction, PACK_DIR/extract.journal: what was asked for, of which
// source, and what is finished. A run that was ended at any moment is taken up by the same command;
// other parameters or another source are refused. It goes when pack.json is written.
//
// It is text: a line that names the format, the request's lines, then one line for each file that
// has its final name, "file PATH SIZE ROOT", or "piece PATH SHARD SIZE ROOT" for what one shard
// gives to a pack file whose other tensors are still to come. A last line without its line end was
// being written when the run ended, and is ignored.
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
// Removes it and the kept headers: the extraction is finished.
bool q3_journal_finish(q3_journal *journal, q3_error *err);

// Makes what was recorded survive a crash of the machine.
bool q3_journal_sync(q3_journal *journal, q3_error *err);

#define Q3_WHOLE_FILE UINT32_MAX // in place of a shard's number

// Was this file, or the piece of it that a shard gives, finished by an earlier run? Then its size
// and root.
bool q3_journal_find(const q3_journal *journal, const q3_place *place, uint32_t shard,
                     uint64_t *size, q3_hash128 *root);
// Records a finished file or piece.
bool q3_journal_record(q3_journal *journal, const q3_place *place, uint32_t shard, uint64_t size,
                       q3_hash128 root, q3_error *err);

// The path of a piece in a pack directory: the file's own with ".SHARD.piece" behind it.
enum { Q3_PIECE_PATH_MAX = Q3_PLACE_PATH_MAX + 24 };
const char *q3_piece_path(const q3_place *place, uint32_t shard, char out[Q3_PIECE_PATH_MAX]);

// Did a run end between writing pack.json and removing the journal? *finished tells; then what was
// left is removed.
bool q3_journal_tidy(const char *directory, bool *finished, q3_error *err);

// The directory of the headers of shards seen (q3_shard_save_header), to free().
char *q3_journal_headers(const char *directory, q3_error *err);

#endif
