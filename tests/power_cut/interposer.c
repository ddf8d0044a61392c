/* Stands between a program and the C library (LD_PRELOAD): counts what the program does to the files under one folder,
 * and at a chosen operation cuts its power, tears its write, or lets the disk be full; or writes all operations down,
 * data included, so that the states of the disk after a power cut can be built from them.
 *
 * Nothing happens before power_cut_arm() is called. What is counted: creating, truncating, writing, renaming, linking,
 * removing and syncing. Operations are done one at a time, so that their order in the record is the order on disk.
 *
 * A record is a line of text, then the bytes that it announces:
 *   C ino mode path_len            a file was made           + path
 *   D ino path_len                 a folder was made         + path
 *   S ino path_len target_len      a symbolic link was made  + path + target
 *   L ino path_len                 a name was linked         + path
 *   R ino path_len new_len         a name was moved          + path + new path
 *   U path_len | X path_len        a name | folder was removed + path
 *   W ino offset len               bytes were written        + bytes
 *   T ino len                      a file got a length
 *   F ino                          a file or folder was synced
 *   M path_len                     a file was mapped to be written: its bytes escape this record + path
 */
#define _GNU_SOURCE
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
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, RECORD, KILL, TEAR, FULL };

static int mode = OFF, record_fd = -1;
static long at, done;
static char root[PATH_MAX];
static size_t root_length;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

void power_cut_arm(const char *folder, int what, long operation, int record_to) {
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    at = operation;
    done = 0;
    record_fd = record_to;
    mode = what;
}

long power_cut_count(void) { return done; }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int inside(const char *path) {
    return strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}

/* The absolute path; symbolic links are not followed. Gives whether it lies in the folder. */
static int absolute(int folder, const char *path, char *out) {
    if (mode == OFF || path == NULL) return 0;
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
    } else {
        char base[PATH_MAX];
        if (folder == AT_FDCWD) {
            if (getcwd(base, sizeof base) == NULL) return 0;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            ssize_t n = readlink(link, base, sizeof base - 1);
            if (n < 0) return 0;
            base[n] = 0;
        }
        if (snprintf(out, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
    }
    return inside(out);
}

/* Whether an open file or folder lies in the folder, and is no socket or pipe. */
static int is_ours(int fd, struct stat *info) {
    if (mode == OFF) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    if (!inside(path) || fstat(fd, info) != 0) return 0;
    return S_ISREG(info->st_mode) || S_ISDIR(info->st_mode);
}

static void put(const void *bytes, size_t length) {
    const char *from = bytes;
    while (length > 0) {
        ssize_t n = syscall(SYS_write, record_fd, from, length);
        if (n <= 0) abort();
        from += n;
        length -= (size_t)n;
    }
}

static void say(const char *form, ...) {
    char line[256];
    va_list args;
    va_start(args, form);
    int n = vsnprintf(line, sizeof line, form, args);
    va_end(args);
    put(line, (size_t)n);
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* Begin an operation: takes the lock. Gives 1 where it must fail because the disk is full. */
static int begin(int needs_room) {
    pthread_mutex_lock(&one_at_a_time);
    long number = done++;
    if (mode == KILL && number == at) die();
    if (mode == TEAR && number == at && !needs_room) die();
    return mode == FULL && number >= at && needs_room;
}

static int tears(void) { return mode == TEAR && done - 1 == at; }

/* End it: lets go of the lock, the error number kept. */
static void end(void) {
    int kept = errno;
    pthread_mutex_unlock(&one_at_a_time);
    errno = kept;
}

#define RECORDS(result) (mode == RECORD && (result) >= 0)

static unsigned long inode_of(const char *path) {
    struct stat info;
    return lstat(path, &info) == 0 ? (unsigned long)info.st_ino : 0;
}

/* -- opening ------------------------------------------------------------------------------------------------------ */

static int opened(int folder, const char *path, int flags, mode_t permissions) {
    static int (*real)(int, const char *, int, ...);
    if (!real) real = dlsym(RTLD_NEXT, "openat64");
    char whole[PATH_MAX];
    struct stat before;
    if (!(flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE || !absolute(folder, path, whole))
        return real(folder, path, flags, permissions);
    int exists = stat(whole, &before) == 0;
    if (exists && !((flags & O_TRUNC) && before.st_size > 0)) return real(folder, path, flags, permissions);
    if (begin(!exists)) {
        end();
        errno = ENOSPC;
        return -1;
    }
    if (tears()) die();
    int fd = real(folder, path, flags, permissions);
    if (RECORDS(fd)) {
        struct stat info;
        fstat(fd, &info);
        if (exists)
            say("T %lu 0\n", (unsigned long)info.st_ino);
        else {
            say("C %lu %o %zu\n", (unsigned long)info.st_ino, info.st_mode & 07777, strlen(whole));
            put(whole, strlen(whole));
        }
    }
    end();
    return fd;
}

#define PERMISSIONS                                   \
    mode_t permissions = 0;                           \
    if (flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) { \
        va_list args;                                 \
        va_start(args, flags);                        \
        permissions = va_arg(args, mode_t);           \
        va_end(args);                                 \
    }

int open(const char *path, int flags, ...) { PERMISSIONS return opened(AT_FDCWD, path, flags, permissions); }
int open64(const char *path, int flags, ...) { PERMISSIONS return opened(AT_FDCWD, path, flags, permissions); }
int openat(int folder, const char *path, int flags, ...) { PERMISSIONS return opened(folder, path, flags, permissions); }
int openat64(int folder, const char *path, int flags, ...) { PERMISSIONS return opened(folder, path, flags, permissions); }
int creat(const char *path, mode_t permissions) {
    return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, permissions);
}
int creat64(const char *path, mode_t permissions) { return creat(path, permissions); }

/* -- writing ------------------------------------------------------------------------------------------------------ */

static ssize_t written(int fd, const void *bytes, size_t length, off_t offset, int has_offset) {
    static ssize_t (*real_write)(int, const void *, size_t);
    static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
    if (!real_write) real_write = dlsym(RTLD_NEXT, "write");
    if (!real_pwrite) real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    struct stat info;
    if (!is_ours(fd, &info)) return has_offset ? real_pwrite(fd, bytes, length, offset) : real_write(fd, bytes, length);
    if (begin(1)) {
        end();
        errno = ENOSPC;
        return -1;
    }
    if (!has_offset) {
        fstat(fd, &info);
        offset = (fcntl(fd, F_GETFL) & O_APPEND) ? info.st_size : lseek(fd, 0, SEEK_CUR);
    }
    if (tears()) length = length / 2;
    ssize_t n = has_offset ? real_pwrite(fd, bytes, length, offset) : real_write(fd, bytes, length);
    if (tears()) die();
    if (RECORDS(n)) {
        say("W %lu %ld %zd\n", (unsigned long)info.st_ino, (long)offset, n);
        put(bytes, (size_t)n);
    }
    end();
    return n;
}

ssize_t write(int fd, const void *bytes, size_t length) { return written(fd, bytes, length, 0, 0); }
ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) { return written(fd, bytes, length, offset, 1); }
ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) { return written(fd, bytes, length, offset, 1); }

static ssize_t gathered(int fd, const struct iovec *parts, int count, off_t offset, int has_offset) {
    size_t length = 0;
    for (int i = 0; i < count; i++) length += parts[i].iov_len;
    char *bytes = malloc(length ? length : 1), *to = bytes;
    for (int i = 0; i < count; i++) to = mempcpy(to, parts[i].iov_base, parts[i].iov_len);
    ssize_t n = written(fd, bytes, length, offset, has_offset);
    int kept = errno;
    free(bytes);
    errno = kept;
    return n;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    struct stat info;
    return is_ours(fd, &info) ? gathered(fd, parts, count, 0, 0) : REAL(writev)(fd, parts, count);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    struct stat info;
    return is_ours(fd, &info) ? gathered(fd, parts, count, offset, 1) : REAL(pwritev)(fd, parts, count, offset);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) { return pwritev(fd, parts, count, offset); }

/* Copies within the kernel would escape the record: callers fall back to reading and writing. */
ssize_t sendfile(int to, int from, off_t *offset, size_t count) {
    struct stat info;
    if (is_ours(to, &info)) {
        errno = EINVAL;
        return -1;
    }
    return syscall(SYS_sendfile, to, from, offset, count);
}
ssize_t sendfile64(int to, int from, off64_t *offset, size_t count) { return sendfile(to, from, offset, count); }
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t count, unsigned flags) {
    struct stat info;
    if (is_ours(to, &info)) {
        errno = EINVAL;
        return -1;
    }
    return syscall(SYS_copy_file_range, from, a, to, b, count, flags);
}

static int cut_to(int fd, off_t length) {
    struct stat info;
    int ours = is_ours(fd, &info);
    if (ours && begin(length > info.st_size)) {
        end();
        errno = ENOSPC;
        return -1;
    }
    if (ours && tears()) die();
    int result = (int)syscall(SYS_ftruncate, fd, length);
    if (ours && RECORDS(result)) say("T %lu %ld\n", (unsigned long)info.st_ino, (long)length);
    if (ours) end();
    return result;
}
int ftruncate(int fd, off_t length) { return cut_to(fd, length); }
int ftruncate64(int fd, off64_t length) { return cut_to(fd, length); }

void *mmap(void *where, size_t length, int protection, int flags, int fd, off_t offset) {
    static void *(*real)(void *, size_t, int, int, int, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "mmap64");
    struct stat info;
    if (mode == RECORD && fd >= 0 && (flags & MAP_SHARED) && (protection & PROT_WRITE) && is_ours(fd, &info)) {
        char link[64], path[PATH_MAX];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, path, sizeof path);
        pthread_mutex_lock(&one_at_a_time);
        say("M %zd\n", n);
        put(path, (size_t)n);
        end();
    }
    return real(where, length, protection, flags, fd, offset);
}
void *mmap64(void *where, size_t length, int protection, int flags, int fd, off64_t offset) {
    return mmap(where, length, protection, flags, fd, offset);
}

/* -- how much room there is --------------------------------------------------------------------------------------- */

int statvfs(const char *path, struct statvfs *room) {
    char whole[PATH_MAX];
    int result = REAL(statvfs)(path, room);
    if (result == 0 && mode == FULL && absolute(AT_FDCWD, path, whole) && done > at) room->f_bavail = room->f_bfree = 0;
    return result;
}
int statvfs64(const char *path, struct statvfs64 *room) { return statvfs(path, (struct statvfs *)room); }

/* -- names -------------------------------------------------------------------------------------------------------- */

static int moved(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    char a[PATH_MAX], b[PATH_MAX];
    int ours = absolute(from_folder, from, a) & absolute(to_folder, to, b);
    if (ours) begin(0);
    unsigned long inode = ours ? inode_of(a) : 0;
    int result = (int)syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
    if (ours && RECORDS(result)) {
        say("R %lu %zu %zu\n", inode, strlen(a), strlen(b));
        put(a, strlen(a));
        put(b, strlen(b));
    }
    if (ours) end();
    return result;
}
int rename(const char *from, const char *to) { return moved(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int a, const char *from, int b, const char *to) { return moved(a, from, b, to, 0); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) { return moved(a, from, b, to, flags); }

static int removed(int folder, const char *path, int flags) {
    char whole[PATH_MAX];
    int ours = absolute(folder, path, whole);
    if (ours) begin(0);
    int result = (int)syscall(SYS_unlinkat, folder, path, flags);
    if (ours && RECORDS(result)) {
        say("%c %zu\n", flags & AT_REMOVEDIR ? 'X' : 'U', strlen(whole));
        put(whole, strlen(whole));
    }
    if (ours) end();
    return result;
}
int unlink(const char *path) { return removed(AT_FDCWD, path, 0); }
int unlinkat(int folder, const char *path, int flags) { return removed(folder, path, flags); }
int rmdir(const char *path) { return removed(AT_FDCWD, path, AT_REMOVEDIR); }

/* A name that takes room: a folder, a link. `kind` is that of its record. */
static int named(char kind, int folder, const char *path, const char *target, int target_folder, mode_t permissions, int flags) {
    char whole[PATH_MAX];
    int ours = absolute(folder, path, whole), result;
    if (ours && begin(1)) {
        end();
        errno = ENOSPC;
        return -1;
    }
    if (ours && tears()) die();
    if (kind == 'D')
        result = (int)syscall(SYS_mkdirat, folder, path, permissions);
    else if (kind == 'S')
        result = (int)syscall(SYS_symlinkat, target, folder, path);
    else
        result = (int)syscall(SYS_linkat, target_folder, target, folder, path, flags);
    if (ours && RECORDS(result)) {
        if (kind == 'S')
            say("S %lu %zu %zu\n", inode_of(whole), strlen(whole), strlen(target));
        else
            say("%c %lu %zu\n", kind, inode_of(whole), strlen(whole));
        put(whole, strlen(whole));
        if (kind == 'S') put(target, strlen(target));
    }
    if (ours) end();
    return result;
}
int mkdir(const char *path, mode_t permissions) { return named('D', AT_FDCWD, path, NULL, 0, permissions, 0); }
int mkdirat(int folder, const char *path, mode_t permissions) { return named('D', folder, path, NULL, 0, permissions, 0); }
int symlink(const char *target, const char *path) { return named('S', AT_FDCWD, path, target, 0, 0, 0); }
int symlinkat(const char *target, int folder, const char *path) { return named('S', folder, path, target, 0, 0, 0); }
int link(const char *from, const char *to) { return named('L', AT_FDCWD, to, from, AT_FDCWD, 0, 0); }
int linkat(int a, const char *from, int b, const char *to, int flags) { return named('L', b, to, from, a, 0, flags); }

/* -- syncing ------------------------------------------------------------------------------------------------------ */

static int synced(int fd, long number) {
    struct stat info;
    int ours = is_ours(fd, &info);
    if (ours) begin(0);
    int result = (int)syscall(number, fd);
    if (ours && RECORDS(result)) say("F %lu\n", (unsigned long)info.st_ino);
    if (ours) end();
    return result;
}
int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }
