/* A disk that fails on demand, for a program that is started with this library in
 * LD_PRELOAD. FAULTY_DISK is the folder that is affected; FAULTY_DISK_MODE is a file
 * whose first letter says how: 's' delays each sync by 100 ms, 'r' lets every change
 * fail as on a read-only file system, anything else does nothing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int real_open(const char *path, int flags) {
    return ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open"))(path, flags);
}

static char mode(void) {
    const char *path = getenv("FAULTY_DISK_MODE");
    char letter = 0;
    int saved = errno, file = path ? real_open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        if (read(file, &letter, 1) != 1) letter = 0;
        close(file);
    }
    errno = saved;
    return letter;
}

static int affected(const char *path) {
    const char *folder = getenv("FAULTY_DISK");
    return folder && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int affected_file(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return affected(path);
}

static int read_only(int is_affected) {
    if (!is_affected || mode() != 'r') return 0;
    errno = EROFS;
    return 1;
}

static int before_sync(int file) {
    if (!affected_file(file)) return 0;
    if (mode() == 's') {
        struct timespec delay = {0, 100000000};
        nanosleep(&delay, 0);
    }
    return read_only(1);
}

int fsync(int file) { return before_sync(file) ? -1 : NEXT(fsync)(file); }
int fdatasync(int file) { return before_sync(file) ? -1 : NEXT(fdatasync)(file); }

ssize_t write(int file, const void *data, size_t size) {
    return read_only(affected_file(file)) ? -1 : NEXT(write)(file, data, size);
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
    return read_only(affected_file(file)) ? -1 : NEXT(pwrite64)(file, data, size, at);
}
int ftruncate64(int file, off64_t size) {
    return read_only(affected_file(file)) ? -1 : NEXT(ftruncate64)(file, size);
}
int fallocate64(int file, int how, off64_t at, off64_t size) {
    return read_only(affected_file(file)) ? -1 : NEXT(fallocate64)(file, how, at, size);
}
int rename(const char *from, const char *to) {
    return read_only(affected(to)) ? -1 : NEXT(rename)(from, to);
}
int unlink(const char *path) { return read_only(affected(path)) ? -1 : NEXT(unlink)(path); }
int mkdir(const char *path, mode_t mode) {
    return read_only(affected(path)) ? -1 : NEXT(mkdir)(path, mode);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t permissions = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    int changes = (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT);
    return read_only(changes && affected(path)) ? -1 : NEXT(open64)(path, flags, permissions);
}
