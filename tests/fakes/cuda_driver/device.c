/* Devices, contexts, errors, and how a function is found by its name. */
#define _GNU_SOURCE
#include "stub.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct Context {
    int device;
};

long stub_counts[KINDS];

static struct Context primary;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int is_initialized, retained;
static CUresult poison;
static __thread CUcontext stack[16];
static __thread int depth;

void stub_lock(void) { pthread_mutex_lock(&mutex); }
void stub_unlock(void) { pthread_mutex_unlock(&mutex); }

long stub_setting(const char *name, long otherwise)
{
    char full[128];
    snprintf(full, sizeof full, "SHOAL_STUB_CUDA_%s", name);
    const char *value = getenv(full);
    return value && *value ? atol(value) : otherwise;
}

int64_t stub_now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

long shoal_stub_count(int kind)
{
    stub_lock();
    long count = kind >= 0 && kind < KINDS ? stub_counts[kind] : -1;
    stub_unlock();
    return count;
}

void stub_poison(CUresult error) { poison = error; }

static int names(const char *setting, const char *function)
{
    const char *value = getenv(setting);
    return value && !strcmp(value, function);
}

static CUresult fault(const char *function)
{
    if (names("SHOAL_STUB_CUDA_CRASH", function))
        abort();
    if (names("SHOAL_STUB_CUDA_HANG", function))
        for (;;)
            sleep(3600);
    const char *fail = getenv("SHOAL_STUB_CUDA_FAIL");
    size_t length = strlen(function);
    if (fail && !strncmp(fail, function, length) && fail[length] == '=')
        return atoi(fail + length + 1);
    return SUCCESS;
}

CUresult stub_enter_without_context(const char *function)
{
    CUresult result = fault(function);
    if (result != SUCCESS)
        return result;
    return is_initialized ? SUCCESS : NOT_INITIALIZED;
}

CUresult stub_enter(const char *function)
{
    CUresult result = stub_enter_without_context(function);
    if (result != SUCCESS)
        return result;
    if (!depth)
        return INVALID_CONTEXT;
    return poison;
}

CUresult cuInit(unsigned flags)
{
    CUresult result = fault("cuInit");
    if (result == SUCCESS)
        result = flags ? INVALID_VALUE : (CUresult)stub_setting("INIT_ERROR", SUCCESS);
    if (result == SUCCESS && stub_setting("DEVICES", 1) < 1)
        result = NO_DEVICE;
    if (result == SUCCESS)
        is_initialized = 1;
    return result;
}

CUresult cuDriverGetVersion(int *version)
{
    *version = (int)stub_setting("DRIVER_VERSION", 13000);
    return SUCCESS;
}

CUresult cuDeviceGetCount(int *count)
{
    *count = (int)stub_setting("DEVICES", 1);
    return stub_enter_without_context("cuDeviceGetCount");
}

CUresult cuDeviceGet(CUdevice *device, int index)
{
    if (index < 0 || index >= stub_setting("DEVICES", 1))
        return INVALID_DEVICE;
    *device = index;
    return stub_enter_without_context("cuDeviceGet");
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device)
{
    (void)device;
    snprintf(name, (size_t)length, "Stub GPU");
    return stub_enter_without_context("cuDeviceGetName");
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
    (void)device;
    *bytes = (size_t)stub_setting("TOTAL_MIB", 1024) << 20;
    return stub_enter_without_context("cuDeviceTotalMem");
}

CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device)
{
    (void)device;
    long sm = stub_setting("SM", 90);
    switch (attribute) {
    case 18: *value = (int)stub_setting("INTEGRATED", 0); break;
    case 19: *value = 1; break; /* can map host memory */
    case 41: *value = 1; break; /* unified addressing */
    case 75: *value = (int)(sm / 10); break;
    case 76: *value = (int)(sm % 10); break;
    default: *value = 0;
    }
    return stub_enter_without_context("cuDeviceGetAttribute");
}

CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device)
{
    cuDeviceGetAttribute(major, 75, device);
    return cuDeviceGetAttribute(minor, 76, device);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    CUresult result = stub_enter_without_context("cuDevicePrimaryCtxRetain");
    if (result != SUCCESS)
        return result;
    stub_lock();
    primary.device = device;
    *context = &primary;
    stub_counts[CONTEXTS] = ++retained;
    stub_unlock();
    return SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
    (void)device;
    CUresult result = stub_enter_without_context("cuDevicePrimaryCtxRelease");
    if (result != SUCCESS)
        return result;
    stub_lock();
    result = retained > 0 ? SUCCESS : INVALID_CONTEXT;
    if (result == SUCCESS)
        stub_counts[CONTEXTS] = --retained;
    stub_unlock();
    return result;
}

CUresult cuCtxPushCurrent_v2(CUcontext context)
{
    CUresult result = stub_enter_without_context("cuCtxPushCurrent");
    if (result != SUCCESS)
        return result;
    if (context != &primary || !retained || depth == 16)
        return INVALID_CONTEXT;
    stack[depth++] = context;
    return SUCCESS;
}

CUresult cuCtxPopCurrent_v2(CUcontext *context)
{
    if (!depth)
        return INVALID_CONTEXT;
    CUcontext popped = stack[--depth];
    if (context)
        *context = popped;
    return stub_enter_without_context("cuCtxPopCurrent");
}

CUresult cuCtxGetCurrent(CUcontext *context)
{
    *context = depth ? stack[depth - 1] : NULL;
    return stub_enter_without_context("cuCtxGetCurrent");
}

CUresult cuCtxSetCurrent(CUcontext context)
{
    if (depth)
        depth--;
    return context ? cuCtxPushCurrent_v2(context) : SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device)
{
    *device = primary.device;
    return stub_enter("cuCtxGetDevice");
}

CUresult cuCtxSynchronize(void) { return stub_enter("cuCtxSynchronize"); }

static const struct { CUresult code; const char *name, *text; } errors[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "unsupported display driver / cuda driver combination"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "capture was invalidated by an earlier error"},
    {CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not begun in this stream"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

CUresult cuGetErrorName(CUresult code, const char **name)
{
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code)
            return *name = errors[i].name, SUCCESS;
    return *name = NULL, INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult code, const char **text)
{
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code)
            return *text = errors[i].text, SUCCESS;
    return *text = NULL, INVALID_VALUE;
}

/* NVIDIA's bindings for Python find every function by it: of each the newest, as the real one does when asked so. */
CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status)
{
    static const char *suffixes[] = {"_v4", "_v3", "_v2", ""};
    (void)version, (void)flags;
    Dl_info self;
    dladdr((void *)cuGetProcAddress_v2, &self);
    void *library = dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    *function = NULL;
    for (size_t i = 0; i < 4 && !*function; i++) {
        char name[128];
        snprintf(name, sizeof name, "%s%s", symbol, suffixes[i]);
        *function = dlsym(library, name);
    }
    if (library)
        dlclose(library);
    if (status)
        *status = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}
