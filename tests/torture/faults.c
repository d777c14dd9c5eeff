/* Loaded with LD_PRELOAD: counts the system calls on files under one folder, and lets one of them fail, kills the
   process at one of them, or records them all with the bytes that are written. Linux only. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[PATH_MAX];
static long count, chosen = -1;
static int action, record_fd = -1;
static pthread_mutex_t mutex = PTHREAD_ERRORCHECK_MUTEX_INITIALIZER_NP;

/* From now on: what happens at call number `at` (0 is the first) under `folder`: action > 0 is the errno it fails with,
   -1 kills before it, -2 after it. `record` is a file descriptor, or -1. */
void torture_arm(const char *folder, long at, int what, int record) {
    snprintf(root, sizeof root, "%s", folder);
    count = 0, chosen = at, action = what, record_fd = record;
}

long torture_count(void) { return count; }

static void full_path(int at, const char *path, char *full) {
    char link[64], base[PATH_MAX] = "";
    if (path && path[0] == '/') { snprintf(full, PATH_MAX, "%s", path); return; }
    if (at == AT_FDCWD) { if (!getcwd(base, sizeof base)) base[0] = 0; }
    else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        ssize_t length = readlink(link, base, sizeof base - 1);
        base[length < 0 ? 0 : length] = 0;
    }
    snprintf(full, PATH_MAX, path && path[0] ? "%s/%s" : "%s", base, path ? path : "");
}

static int is_inside(const char *path) {
    size_t length = strlen(root);
    return length && !strncmp(path, root, length) && (path[length] == '/' || path[length] == 0);
}

/* Before a call: 1 where it is counted (and the lock is held), 0 where it is none of ours, -1 where it must fail. */
static int enter(const char *first, const char *second) {
    if (!is_inside(first) && !(second && is_inside(second))) return 0;
    if (pthread_mutex_lock(&mutex)) return 0; /* a call within a call */
    if (count++ == chosen) {
        if (action == -1) kill(getpid(), SIGKILL);
        if (action > 0) { pthread_mutex_unlock(&mutex); errno = action; return -1; }
    }
    return 1;
}

static void note(const char *name, const char *first, const char *second, long offset, const void *data, size_t length) {
    if (record_fd < 0) return;
    char line[3 * PATH_MAX];
    int size = snprintf(line, sizeof line, "%s\t%s\t%s\t%ld\t%zu\n", name, first, second ? second : "", offset, length);
    static ssize_t (*plain)(int, const void *, size_t);
    if (!plain) plain = dlsym(RTLD_NEXT, "write");
    if (plain(record_fd, line, size) < 0 || (length && plain(record_fd, data, length) < 0)) abort();
}

static void leave(void) {
    if (count - 1 == chosen && action == -2) kill(getpid(), SIGKILL);
    pthread_mutex_unlock(&mutex);
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, name);

#define ONE_PATH(result, failed, function, parameters, at, path, arguments, kind, types) \
    result function parameters { \
        REAL(result, #function, types) \
        char full[PATH_MAX]; \
        full_path(at, path, full); \
        int state = enter(full, NULL), number; \
        if (state < 0) return failed; \
        result value = real arguments; \
        number = errno; \
        if (state) { if (value != failed) note(kind, full, NULL, 0, NULL, 0); leave(); } \
        errno = number; \
        return value; \
    }
#define TYPES(...) __VA_ARGS__

ONE_PATH(int, -1, mkdir, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode), "mkdir", TYPES(const char *, mode_t))
ONE_PATH(int, -1, mkdirat, (int at, const char *path, mode_t mode), at, path, (at, path, mode), "mkdir", TYPES(int, const char *, mode_t))
ONE_PATH(int, -1, unlink, (const char *path), AT_FDCWD, path, (path), "unlink", TYPES(const char *))
ONE_PATH(int, -1, unlinkat, (int at, const char *path, int flags), at, path, (at, path, flags), "unlink", TYPES(int, const char *, int))
ONE_PATH(int, -1, rmdir, (const char *path), AT_FDCWD, path, (path), "unlink", TYPES(const char *))
ONE_PATH(int, -1, fsync, (int file), file, "", (file), "fsync", TYPES(int))
ONE_PATH(int, -1, ftruncate64, (int file, off_t size), file, "", (file, size), "other", TYPES(int, off_t))
ONE_PATH(int, -1, chmod, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode), "other", TYPES(const char *, mode_t))
ONE_PATH(int, -1, fchmod, (int file, mode_t mode), file, "", (file, mode), "other", TYPES(int, mode_t))
ONE_PATH(int, -1, flock, (int file, int how), file, "", (file, how), "other", TYPES(int, int))
ONE_PATH(DIR *, NULL, opendir, (const char *path), AT_FDCWD, path, (path), "other", TYPES(const char *))
ONE_PATH(ssize_t, -1, read, (int file, void *data, size_t size), file, "", (file, data, size), "other", TYPES(int, void *, size_t))

#define TWO_PATHS(function, parameters, from_at, from, to_at, to, arguments, kind, types) \
    int function parameters { \
        REAL(int, #function, types) \
        char first[PATH_MAX], second[PATH_MAX]; \
        full_path(from_at, from, first), full_path(to_at, to, second); \
        int state = enter(first, second), number; \
        if (state < 0) return -1; \
        int value = real arguments; \
        number = errno; \
        if (state) { if (!value) note(kind, first, second, 0, NULL, 0); leave(); } \
        errno = number; \
        return value; \
    }

TWO_PATHS(rename, (const char *from, const char *to), AT_FDCWD, from, AT_FDCWD, to, (from, to), "rename", TYPES(const char *, const char *))
TWO_PATHS(renameat, (int a, const char *from, int b, const char *to), a, from, b, to, (a, from, b, to), "rename", TYPES(int, const char *, int, const char *))
TWO_PATHS(renameat2, (int a, const char *from, int b, const char *to, unsigned flags), a, from, b, to, (a, from, b, to, flags), flags & 2 ? "exchange" : "rename", TYPES(int, const char *, int, const char *, unsigned))
TWO_PATHS(link, (const char *from, const char *to), AT_FDCWD, from, AT_FDCWD, to, (from, to), "link", TYPES(const char *, const char *))
TWO_PATHS(linkat, (int a, const char *from, int b, const char *to, int flags), a, from, b, to, (a, from, b, to, flags), "link", TYPES(int, const char *, int, const char *, int))

static int opened(const char *name, int at, const char *path, int flags, mode_t mode) {
    int (*real)(int, const char *, int, mode_t) = dlsym(RTLD_NEXT, name);
    char full[PATH_MAX];
    full_path(at, path, full);
    struct stat before;
    int state = enter(full, NULL), number, is_new = flags & O_CREAT && stat(full, &before);
    if (state < 0) return -1;
    int value = real(at, path, flags, mode);
    number = errno;
    if (state) { if (value >= 0 && is_new) note("create", full, NULL, 0, NULL, 0); leave(); }
    errno = number;
    return value;
}

#define OPEN(function, real_name, first, at) \
    int function(first const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return opened(real_name, at, path, flags, mode); \
    }
#define NOTHING
#define DIRECTORY int at,
OPEN(open, "openat", NOTHING, AT_FDCWD)
OPEN(open64, "openat64", NOTHING, AT_FDCWD)
OPEN(openat, "openat", DIRECTORY, at)
OPEN(openat64, "openat64", DIRECTORY, at)

ssize_t write(int file, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t)
    char full[PATH_MAX];
    full_path(file, "", full);
    int state = file == record_fd ? 0 : enter(full, NULL), number;
    if (state < 0) return -1;
    off_t offset = state ? lseek(file, 0, SEEK_CUR) : 0;
    ssize_t value = real(file, data, size);
    number = errno;
    if (state) { if (value > 0) note("write", full, NULL, offset, data, value); leave(); }
    errno = number;
    return value;
}

ssize_t sendfile64(int out, int in, off_t *from, size_t size) {
    REAL(ssize_t, "sendfile64", int, int, off_t *, size_t)
    char full[PATH_MAX];
    full_path(out, "", full);
    int state = enter(full, NULL), number;
    if (state < 0) return -1;
    off_t offset = state ? lseek(out, 0, SEEK_CUR) : 0, start = from ? *from : lseek(in, 0, SEEK_CUR);
    ssize_t value = real(out, in, from, size);
    number = errno;
    if (state) {
        void *copy = value > 0 ? malloc(value) : NULL;
        if (copy && pread(in, copy, value, start) == value) note("write", full, NULL, offset, copy, value);
        free(copy);
        leave();
    }
    errno = number;
    return value;
}
