// SPDX-License-Identifier: Apache-2.0
//
// The journal of an unfinished extraction. One that is taken up takes a further line, and is then
// taken up again with that line in it.
#include "journal.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char request[] = "codec raw\nsource 1\n";
    q3_error err;
    q3_journal *journal;
    fuzz_write("extract.journal", (q3_bytes){data, size}, 0);
    if (!q3_journal_open(fuzz_directory(), request, &journal, &err))
        return 0;
    static const uint32_t shards[] = {Q3_WHOLE_FILE, 3};
    const q3_place place = {.part = Q3_EXPERT, .layer = 1000, .expert = 2};
    const q3_hash128 root = {.low = 1, .high = 2};
    uint64_t found_size;
    q3_hash128 found_root;
    for (size_t i = 0; i < 2; i++) {
        q3_journal_find(journal, &place, shards[i], &found_size, &found_root);
        FUZZ_CHECK(q3_journal_record(journal, &place, shards[i], size + i, root, &err));
    }
    q3_journal_close(journal);
    if (!q3_journal_open(fuzz_directory(), request, &journal, &err))
        fuzz_violated(__FILE__, __LINE__, err.message);
    for (size_t i = 0; i < 2; i++) {
        FUZZ_CHECK(q3_journal_find(journal, &place, shards[i], &found_size, &found_root));
        FUZZ_CHECK(found_size == size + i && q3_hash128_equal(found_root, root));
    }
    q3_journal_close(journal);
    return 0;
}
