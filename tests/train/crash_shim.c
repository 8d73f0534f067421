/* Counts what a process does to the files below some folders, and kills it at the n-th such call.

   Loaded by LD_PRELOAD and asleep until crash_arm is called. The kill comes before the call; in torn
   mode half of a write comes first, in after mode the whole of it. Every call is one line in the log: its number, what it was, its bytes (-1: none), the path. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char prefixes[8][PATH_MAX];
enum { BEFORE, TORN, AFTER, NO = 0 };
static int prefix_count, mode, log_fd = -1;
static atomic_int armed;
static atomic_long calls, deadly;

int crash_arm(const char *below, long n, int how, const char *log) {
    prefix_count = 0;
    for (const char *start = below; *start && prefix_count < 8;) { /* one prefix a line */
        const char *end = strchrnul(start, '\n');
        size_t length = (size_t)(end - start);
        if (length >= PATH_MAX) return -1;
        memcpy(prefixes[prefix_count], start, length);
        prefixes[prefix_count++][length] = 0;
        start = *end ? end + 1 : end;
    }
    if (log_fd < 0 && *log) log_fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    mode = how;
    atomic_store(&deadly, n);
    atomic_store(&armed, 1);
    return 0;
}

void crash_disarm(void) { atomic_store(&armed, 0); }

long crash_calls(void) { return atomic_load(&calls); }

static int inside(const char *path) {
    for (int i = 0; i < prefix_count; i++) {
        size_t length = strlen(prefixes[i]);
        if (!strncmp(path, prefixes[i], length) && (path[length] == 0 || path[length] == '/')) return 1;
    }
    return 0;
}

static void path_of_fd(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, out, PATH_MAX - 1);
    out[length < 0 ? 0 : length] = 0;
}

static void path_of_name(int folder, const char *name, char *out) {
    char base[PATH_MAX] = "";
    if (name[0] == '/') {
        snprintf(out, PATH_MAX, "%s", name);
        return;
    }
    if (folder == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) base[0] = 0;
    } else path_of_fd(folder, base);
    size_t first = strlen(base), second = strlen(name);
    if (first + second + 2 > PATH_MAX) {
        out[0] = 0;
        return;
    }
    memcpy(out, base, first);
    out[first] = '/';
    memcpy(out + first + 1, name, second + 1);
}

static void die(void) {
    syscall(SYS_kill, (long)getpid(), SIGKILL);
    for (;;) pause();
}

/* Counts a call and dies at the n-th; TORN or AFTER when the write, or half of it, is to be done before `die`. */
static int counted(const char *what, long bytes, const char *path) {
    if (!inside(path)) return NO;
    long number = atomic_fetch_add(&calls, 1) + 1;
    if (log_fd >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%ld\t%s\t%ld\t%s\n", number, what, bytes, path);
        syscall(SYS_write, log_fd, line, (size_t)length);
    }
    if (number != atomic_load(&deadly)) return NO;
    if (mode == AFTER || (mode == TORN && bytes > 1)) return mode;
    die();
    return NO;
}

static int on_fd(const char *what, long bytes, int fd) {
    char path[PATH_MAX];
    if (!atomic_load(&armed) || fd == log_fd) return NO;
    path_of_fd(fd, path);
    return counted(what, bytes, path);
}

static int exists(int folder, const char *name) {
    struct stat found;
    return !fstatat(folder, name, &found, AT_SYMLINK_NOFOLLOW);
}

static void on_name(const char *what, int folder, const char *name) {
    char path[PATH_MAX];
    if (!atomic_load(&armed)) return;
    if (!strcmp(what, "mkdir") && exists(folder, name)) return; /* "make it if it is not there" changes nothing */
    path_of_name(folder, name, path);
    counted(what, -1, path);
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

ssize_t write(int fd, const void *data, size_t count) {
    REAL(ssize_t, "write", int, const void *, size_t);
    int deadly_here = on_fd("write", (long)count, fd);
    ssize_t done = real(fd, data, deadly_here == TORN ? count / 2 : count);
    if (deadly_here) die();
    return done;
}

#define PWRITE(name) \
    ssize_t name(int fd, const void *data, size_t count, off_t at) { \
        REAL(ssize_t, #name, int, const void *, size_t, off_t); \
        int deadly_here = on_fd("pwrite", (long)count, fd); \
        ssize_t done = real(fd, data, deadly_here == TORN ? count / 2 : count, at); \
        if (deadly_here) die(); \
        return done; \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t writev(int fd, const struct iovec *parts, int number) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    long bytes = 0;
    for (int i = 0; i < number; i++) bytes += (long)parts[i].iov_len;
    int deadly_here = on_fd("writev", bytes, fd);
    if (deadly_here) {
        long left = deadly_here == TORN ? bytes / 2 : bytes;
        for (int i = 0; i < number && left > 0; i++) {
            size_t length = (long)parts[i].iov_len < left ? parts[i].iov_len : (size_t)left;
            syscall(SYS_write, fd, parts[i].iov_base, length);
            left -= (long)length;
        }
        die();
    }
    return real(fd, parts, number);
}

#define SENDFILE(name) \
    ssize_t name(int to, int from, off_t *at, size_t count) { \
        REAL(ssize_t, #name, int, int, off_t *, size_t); \
        on_fd("sendfile", -1, to); \
        return real(to, from, at, count); \
    }
SENDFILE(sendfile)
SENDFILE(sendfile64)

ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t count, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    on_fd("copy_file_range", -1, to);
    return real(from, from_at, to, to_at, count, flags);
}

#define ON_FD(name, parameters, arguments, ...) \
    int name parameters { \
        REAL(int, #name, __VA_ARGS__); \
        on_fd(#name, -1, fd); \
        return real arguments; \
    }
ON_FD(fsync, (int fd), (fd), int)
ON_FD(fdatasync, (int fd), (fd), int)
ON_FD(ftruncate, (int fd, off_t length), (fd, length), int, off_t)
ON_FD(ftruncate64, (int fd, off64_t length), (fd, length), int, off64_t)

#define ON_NAME(name, parameters, arguments, folder, path, ...) \
    int name parameters { \
        REAL(int, #name, __VA_ARGS__); \
        on_name(#name, folder, path); \
        return real arguments; \
    }
ON_NAME(unlink, (const char *p), (p), AT_FDCWD, p, const char *)
ON_NAME(unlinkat, (int d, const char *p, int f), (d, p, f), d, p, int, const char *, int)
ON_NAME(rmdir, (const char *p), (p), AT_FDCWD, p, const char *)
ON_NAME(mkdir, (const char *p, mode_t m), (p, m), AT_FDCWD, p, const char *, mode_t)
ON_NAME(truncate, (const char *p, off_t n), (p, n), AT_FDCWD, p, const char *, off_t)
ON_NAME(rename, (const char *p, const char *q), (p, q), AT_FDCWD, q, const char *, const char *)
ON_NAME(renameat, (int c, const char *p, int d, const char *q), (c, p, d, q), d, q, int, const char *, int, const char *)
ON_NAME(renameat2, (int c, const char *p, int d, const char *q, unsigned f), (c, p, d, q, f), d, q, int, const char *,
        int, const char *, unsigned)

#define CREATING(flags) ((flags) & (O_CREAT | O_TRUNC))

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, #name, const char *, int, ...); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        if (CREATING(flags)) on_name("create", AT_FDCWD, path); \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        REAL(int, #name, int, const char *, int, ...); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        if (CREATING(flags)) on_name("create", folder, path); \
        return real(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        REAL(FILE *, #name, const char *, const char *); \
        if (strchr(mode, 'w')) on_name("create", AT_FDCWD, path); \
        return real(path, mode); \
    }
FOPEN(fopen)
FOPEN(fopen64)
