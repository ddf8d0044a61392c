/* A CUDA driver without a GPU: host memory stands for the GPU's. For the tests of what uses the driver.
 *
 * Stricter than the real one: every call but those that ask about devices needs a current context, copies must lie
 * within live allocations, and whatever is freed twice is an error. Work is done as soon as it is enqueued, but a
 * stream says that it is busy for as long as SHOAL_STUB_CUDA_WORK_US tells, so that waiting is real.
 *
 *   SHOAL_STUB_CUDA_INIT_ERROR      cuInit answers this code
 *   SHOAL_STUB_CUDA_CRASH, _HANG    the function of this name kills the process, or never returns
 *   SHOAL_STUB_CUDA_FAIL            NAME=CODE: the function of this name answers this code
 *   SHOAL_STUB_CUDA_FAIL_AFTER      the n-th piece of enqueued work fails, and all that the context does after it
 *   SHOAL_STUB_CUDA_DEVICES         GPUs; 1
 *   SHOAL_STUB_CUDA_DRIVER_VERSION  13000 is CUDA 13.0, and the default
 *   SHOAL_STUB_CUDA_SM              87 is Orin; 90
 *   SHOAL_STUB_CUDA_INTEGRATED      1: the GPU shares the processors' memory
 *   SHOAL_STUB_CUDA_TOTAL_MIB       the GPU's memory; 1024
 *   SHOAL_STUB_CUDA_WORK_US         how long a piece of work takes; 0
 */
#ifndef SHOAL_STUB_CUDA_H
#define SHOAL_STUB_CUDA_H

#include <stddef.h>
#include <stdint.h>

typedef int CUresult;
typedef int CUdevice;
typedef uintptr_t CUdeviceptr;
typedef struct Context *CUcontext;
typedef struct Stream *CUstream;
typedef struct Event *CUevent;
typedef struct Graph *CUgraph;
typedef struct Graph *CUgraphExec;

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNMATCHED = 902,
};

/* What is live now, and how many allocations there ever were: shoal_stub_count(kind). */
enum Kind { DEVICE_MEMORY, HOST_MEMORY, STREAMS, EVENTS, GRAPHS, CONTEXTS, ALLOCATIONS, WORK, KINDS };
extern long stub_counts[KINDS];

struct Work {
    void (*run)(void *);
    void *argument;
    CUdeviceptr to, from;
    size_t size;
    struct Work *next;
};

struct Stream {
    int64_t busy_until_us;
    int is_capturing, is_invalidated;
    struct Graph *graph;
};

void stub_lock(void);
void stub_unlock(void);
long stub_setting(const char *name, long otherwise);
/* SUCCESS, or what this function shall answer: faults, no context, an error of earlier work. */
CUresult stub_enter(const char *function);
CUresult stub_enter_without_context(const char *function);
/* SUCCESS, or what becomes of work that is enqueued now; locked. */
CUresult stub_work(struct Stream *stream);
int64_t stub_now_us(void);
void stub_poison(CUresult error);
int stub_is_capturing(void);
void stub_invalidate_capture(void);
/* Whether these bytes lie within live memory that the GPU can reach; locked. */
int stub_is_device_memory(CUdeviceptr address, size_t size);

#endif
