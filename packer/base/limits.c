// SPDX-License-Identifier: Apache-2.0
#include "limits.h"

#include <inttypes.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static FILE *open_in(const char *directory, const char *name)
{
    char path[PATH_MAX];
    const int length = snprintf(path, sizeof path, "%s/%s", directory, name);
    return length > 0 && (size_t)length < sizeof path ? fopen(path, "re") : NULL;
}

// The number behind a key that begins a line ("key 123", "key: 123 kB").
static bool read_key(const char *directory, const char *name, const char *key, uint64_t *value)
{
    FILE *file = open_in(directory, name);
    const size_t length = strlen(key);
    char line[256];
    bool found = false;
    while (file && !found && fgets(line, sizeof line, file))
        found = strncmp(line, key, length) == 0 && (line[length] == ' ' || line[length] == '\t') &&
                sscanf(line + length, "%" SCNu64, value) == 1;
    if (file)
        fclose(file);
    return found;
}

// One or two numbers. Words for "no limit" ("max", "-1") are not numbers.
static int read_numbers(const char *directory, const char *name, uint64_t *first, uint64_t *second)
{
    FILE *file = open_in(directory, name);
    char line[256];
    int count = 0;
    if (file && fgets(line, sizeof line, file) && line[0] >= '0' && line[0] <= '9')
        count = sscanf(line, "%" SCNu64 " %" SCNu64, first, second);
    if (file)
        fclose(file);
    return count;
}

static bool read_number(const char *directory, const char *name, uint64_t *value)
{
    uint64_t unused;
    return read_numbers(directory, name, value, &unused) >= 1;
}

// ---- control groups ----

// Called with the directory of a group that the process is in.
typedef void group_visit(void *context, const char *directory, unsigned version);

static bool in_list(const char *list, const char *word)
{
    const size_t length = strlen(word);
    for (const char *at = list; *at;) {
        const size_t item = strcspn(at, ",\n");
        if (item == length && strncmp(at, word, length) == 0)
            return true;
        at += item + (at[item] != 0);
    }
    return false;
}

// The process's path in a hierarchy: the one with this controller, or, for version 2, the one that
// is not named after any. Lines are "number:controllers:path".
static bool find_group(const char *root, unsigned version, const char *controller,
                       char path[PATH_MAX])
{
    FILE *file = open_in(root, "proc/self/cgroup");
    char *line = NULL;
    size_t capacity = 0;
    bool found = false;
    while (file && !found && getline(&line, &capacity, file) > 0) {
        char *controllers = strchr(line, ':');
        char *name = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!name)
            continue;
        controllers++;
        *name++ = 0;
        name[strcspn(name, "\n")] = 0;
        found = version == 2 ? !*controllers : in_list(controllers, controller);
        found = found && strlen(name) < PATH_MAX;
        if (found)
            strcpy(path, name);
    }
    free(line);
    if (file)
        fclose(file);
    return found;
}

// Visits the process's group and those above it, as far as they can be seen under a mount whose top
// is the group `top`.
static void visit_upwards(const char *root, const char *mount, const char *top, const char *group,
                          unsigned version, group_visit *visit, void *context)
{
    char directory[PATH_MAX];
    const size_t skip = strcmp(top, "/") == 0 ? 0 : strlen(top);
    const bool below = strncmp(group, top, skip) == 0 && (!group[skip] || group[skip] == '/') &&
                       !strstr(group, "/..");
    const int length =
        snprintf(directory, sizeof directory, "%s%s%s", root, mount, below ? group + skip : "");
    if (length < 0 || (size_t)length >= sizeof directory)
        return;
    const size_t shortest = strlen(root) + strlen(mount);
    for (;;) {
        visit(context, directory, version);
        char *slash = strrchr(directory, '/');
        if (!slash || (size_t)(slash - directory) < shortest)
            return;
        *slash = 0;
    }
}

// Lines of mountinfo are "id parent device top mount options... - type source options", see
// proc(5).
static void visit_groups(const char *root, const char *controller, group_visit *visit,
                         void *context)
{
    FILE *file = open_in(root, "proc/self/mountinfo");
    char *line = NULL;
    size_t capacity = 0;
    char top[PATH_MAX], mount[PATH_MAX], type[32], options[1024], group[PATH_MAX];
    _Static_assert(PATH_MAX >= 4096, "the field widths below");
    while (file && getline(&line, &capacity, file) > 0) {
        const char *behind = strstr(line, " - ");
        if (!behind || sscanf(line, "%*s %*s %*s %4095s %4095s", top, mount) != 2 ||
            sscanf(behind, " - %31s %*s %1023s", type, options) != 2)
            continue;
        const unsigned version = strcmp(type, "cgroup2") == 0  ? 2
                                 : strcmp(type, "cgroup") == 0 ? 1
                                                               : 0;
        if (version == 0 || (version == 1 && !in_list(options, controller)))
            continue;
        if (find_group(root, version, controller, group))
            visit_upwards(root, mount, top, group, version, visit, context);
    }
    free(line);
    if (file)
        fclose(file);
}

// ---- memory ----

static void lower_to(uint64_t *value, uint64_t limit)
{
    if (limit < *value)
        *value = limit;
}

// Files in the cache are given up before anything else, used lately or not.
static uint64_t group_use(const char *directory, const char *use, const char *inactive,
                          const char *active)
{
    uint64_t used, cached = 0, part;
    if (!read_number(directory, use, &used))
        return 0;
    if (read_key(directory, "memory.stat", inactive, &part))
        cached += part;
    if (read_key(directory, "memory.stat", active, &part))
        cached += part;
    return used > cached ? used - cached : 0;
}

static void visit_memory(void *context, const char *directory, unsigned version)
{
    uint64_t limit = UINT64_MAX, part;
    if (version == 2) {
        if (read_number(directory, "memory.max", &part))
            lower_to(&limit, part);
        // Above this one the process is not killed but made to wait for reclaim.
        if (read_number(directory, "memory.high", &part))
            lower_to(&limit, part);
    } else if (read_number(directory, "memory.limit_in_bytes", &part)) {
        lower_to(&limit, part);
    }
    if (limit == UINT64_MAX)
        return;
    const uint64_t used =
        version == 2 ? group_use(directory, "memory.current", "inactive_file", "active_file")
                     : group_use(directory, "memory.usage_in_bytes", "total_inactive_file",
                                 "total_active_file");
    lower_to(context, limit > used ? limit - used : 0);
}

uint64_t q3_available_memory_under(const char *root)
{
    uint64_t available = UINT64_MAX, kilobytes;
    if (read_key(root, "proc/meminfo", "MemAvailable:", &kilobytes) &&
        kilobytes <= UINT64_MAX / 1024)
        available = kilobytes * 1024;
    visit_groups(root, "memory", visit_memory, &available);
    return available;
}

uint64_t q3_available_memory(void)
{
    return q3_available_memory_under("");
}

q3_memory_use q3_memory_used(void)
{
    q3_memory_use use = {0};
    uint64_t kilobytes;
    if (read_key("/proc/self", "status", "VmRSS:", &kilobytes))
        use.now = kilobytes * 1024;
    if (read_key("/proc/self", "status", "VmHWM:", &kilobytes))
        use.peak = kilobytes * 1024;
    // The system counts the memory in use loosely, the peak when it needs to.
    if (use.peak < use.now)
        use.peak = use.now;
    return use;
}

// ---- processors ----

static void visit_quota(void *context, const char *directory, unsigned version)
{
    unsigned *processors = context;
    uint64_t quota, period;
    if (version == 2) {
        if (read_numbers(directory, "cpu.max", &quota, &period) != 2)
            return;
    } else if (!read_number(directory, "cpu.cfs_quota_us", &quota) ||
               !read_number(directory, "cpu.cfs_period_us", &period)) {
        return;
    }
    if (period == 0)
        return;
    const uint64_t whole = quota / period + (quota % period != 0);
    if (whole < *processors)
        *processors = whole ? (unsigned)whole : 1;
}

unsigned q3_quota_processors_under(const char *root, unsigned most)
{
    visit_groups(root, "cpu", visit_quota, &most);
    return most;
}

// The lowest number of those that share a core with a processor; its own when nothing is known.
static unsigned first_of_core(const char *root, unsigned processor)
{
    char directory[PATH_MAX];
    uint64_t first;
    const int length = snprintf(directory, sizeof directory,
                                "%s/sys/devices/system/cpu/cpu%u/topology", root, processor);
    const bool known = length > 0 && (size_t)length < sizeof directory &&
                       read_number(directory, "thread_siblings_list", &first);
    return known && first <= processor ? (unsigned)first : processor;
}

unsigned q3_cores_under(const char *root, const bool *usable, size_t processors)
{
    bool counted[CPU_SETSIZE] = {false};
    unsigned cores = 0;
    for (unsigned i = 0; i < processors && i < CPU_SETSIZE; i++) {
        if (!usable[i])
            continue;
        const unsigned core = first_of_core(root, i);
        cores += !counted[core];
        counted[core] = true;
    }
    return cores;
}

unsigned q3_available_processors(void)
{
    cpu_set_t set;
    // A set that does not fit is that of a machine of more than 1,024 processors.
    const long count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set)
                                                                   : sysconf(_SC_NPROCESSORS_ONLN);
    return q3_quota_processors_under("", count < 1 ? 1 : (unsigned)count);
}

unsigned q3_available_cores(void)
{
    cpu_set_t set;
    bool usable[CPU_SETSIZE];
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return q3_available_processors();
    for (unsigned i = 0; i < CPU_SETSIZE; i++)
        usable[i] = CPU_ISSET(i, &set);
    const unsigned count = q3_cores_under("", usable, CPU_SETSIZE);
    return q3_quota_processors_under("", count ? count : 1);
}
