// SPDX-License-Identifier: Apache-2.0
#include "region.h"

#include "base/bytes.h"

#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20 };

bool q3_region_create(uint64_t size, q3_region *region, q3_error *err)
{
    *region = (q3_region){0};
    uint64_t mapped;
    if (!q3_add(size, HUGE_PAGE, &mapped) || mapped > SIZE_MAX / 2)
        return q3_fail_memory(err, SIZE_MAX);
    uint8_t *start = mmap(NULL, (size_t)mapped, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED)
        return q3_fail_memory(err, (size_t)size);
    // Keep what starts at a huge page, give the rest back.
    const size_t front = (size_t)(-(uintptr_t)start % HUGE_PAGE);
    const size_t page = 4096;
    const size_t kept = ((size_t)size + page - 1) & ~(page - 1);
    if (front)
        munmap(start, front);
    if ((size_t)mapped > front + kept)
        munmap(start + front + kept, (size_t)mapped - front - kept);
    region->data = start + front;
    region->size = size;
    // Where huge pages are off this fails, which changes nothing but the speed.
    if (size >= HUGE_PAGE)
        madvise(region->data, kept, MADV_HUGEPAGE);
    return true;
}

void q3_region_destroy(q3_region *region)
{
    if (region->data)
        munmap(region->data, ((size_t)region->size + 4095) & ~(size_t)4095);
    *region = (q3_region){0};
}

void *q3_region_take(q3_region *region, uint64_t bytes)
{
    void *part = region->data + region->used;
    region->used += q3_region_part(bytes, 1);
    return part;
}
