/* Memory of the GPU and of the host, both counted, both checked. */
#include "stub.h"

#include <stdlib.h>
#include <string.h>

struct Allocation {
    uintptr_t address;
    size_t size;
    int is_host, is_mapped;
    struct Allocation *next;
};

static struct Allocation *allocations;
static size_t used;

static int is_integrated(void) { return stub_setting("INTEGRATED", 0) != 0; }
static size_t total(void) { return (size_t)stub_setting("TOTAL_MIB", 1024) << 20; }

static CUresult allocate(const char *function, uintptr_t *address, size_t size, int is_host, int is_mapped)
{
    CUresult result = stub_enter(function);
    if (result != SUCCESS)
        return result;
    if (!size)
        return INVALID_VALUE;
    if (stub_is_capturing())
        return stub_invalidate_capture(), CAPTURE_UNSUPPORTED;
    stub_lock();
    int counts = !is_host || is_integrated();
    if (counts && (size > total() || used > total() - size)) {
        stub_unlock();
        return OUT_OF_MEMORY;
    }
    struct Allocation *new = malloc(sizeof *new);
    size_t rounded = (size + 255) / 256 * 256;
    *new = (struct Allocation){(uintptr_t)aligned_alloc(256, rounded), size, is_host, is_mapped, allocations};
    memset((void *)new->address, 0xCD, rounded); /* as on a GPU, nothing says that it is zero */
    allocations = new;
    used += counts ? size : 0;
    stub_counts[is_host ? HOST_MEMORY : DEVICE_MEMORY]++;
    stub_counts[ALLOCATIONS]++;
    *address = new->address;
    stub_unlock();
    return SUCCESS;
}

static CUresult release(const char *function, uintptr_t address, int is_host)
{
    CUresult result = stub_enter_without_context(function);
    if (result != SUCCESS)
        return result;
    stub_lock();
    for (struct Allocation **link = &allocations; *link; link = &(*link)->next) {
        struct Allocation *found = *link;
        if (found->address != address || found->is_host != is_host)
            continue;
        *link = found->next;
        used -= !is_host || is_integrated() ? found->size : 0;
        stub_counts[is_host ? HOST_MEMORY : DEVICE_MEMORY]--;
        free((void *)found->address);
        free(found);
        stub_unlock();
        return SUCCESS;
    }
    stub_unlock();
    return INVALID_VALUE;
}

int stub_is_device_memory(CUdeviceptr address, size_t size)
{
    for (struct Allocation *each = allocations; each; each = each->next)
        if (address >= each->address && address + size <= each->address + each->size)
            return !each->is_host || each->is_mapped;
    return 0;
}

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t size) { return allocate("cuMemAlloc", address, size, 0, 0); }
CUresult cuMemFree_v2(CUdeviceptr address) { return release("cuMemFree", address, 0); }

CUresult cuMemHostAlloc(void **address, size_t size, unsigned flags)
{
    return allocate("cuMemHostAlloc", (uintptr_t *)address, size, 1, (flags & 2) != 0);
}

CUresult cuMemFreeHost(void *address) { return release("cuMemFreeHost", (uintptr_t)address, 1); }

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *address, void *host, unsigned flags)
{
    CUresult result = stub_enter("cuMemHostGetDevicePointer");
    if (result != SUCCESS)
        return result;
    stub_lock();
    result = !flags && stub_is_device_memory((CUdeviceptr)host, 1) ? SUCCESS : INVALID_VALUE;
    stub_unlock();
    *address = (CUdeviceptr)host;
    return result;
}

CUresult cuMemGetInfo_v2(size_t *left, size_t *all)
{
    stub_lock();
    *all = total();
    *left = *all - used;
    stub_unlock();
    return stub_enter("cuMemGetInfo");
}
