/* Streams, events, copies, and graphs of copies and host functions. */
#include "stub.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct Event {
    int64_t done_us;
    int is_timed, is_recorded;
};

struct Graph {
    struct Work *first, **last;
};

static struct Stream default_stream;
static __thread struct Stream *capturing; /* thread-local mode: what this thread may not do meanwhile */

static struct Stream *of(CUstream stream) { return stream ? stream : &default_stream; }

int stub_is_capturing(void) { return capturing != NULL; }

void stub_invalidate_capture(void)
{
    if (capturing)
        capturing->is_invalidated = 1;
}

CUresult stub_work(struct Stream *stream)
{
    long fail_after = stub_setting("FAIL_AFTER", 0);
    int64_t now = stub_now_us();
    if (stream->busy_until_us < now)
        stream->busy_until_us = now;
    stream->busy_until_us += stub_setting("WORK_US", 0);
    if (++stub_counts[WORK] == fail_after)
        stub_poison(ILLEGAL_ADDRESS);
    return SUCCESS;
}

static void run(struct Work *work)
{
    if (work->run)
        work->run(work->argument);
    else
        memcpy((void *)work->to, (void *)work->from, work->size);
}

static CUresult enqueue(const char *function, CUstream handle, struct Work work)
{
    CUresult result = stub_enter(function);
    if (result != SUCCESS)
        return result;
    struct Stream *stream = of(handle);
    if (stream->is_capturing) {
        struct Work *node = malloc(sizeof *node);
        *node = work;
        *stream->graph->last = node;
        stream->graph->last = &node->next;
        return SUCCESS;
    }
    run(&work);
    stub_lock();
    result = stub_work(stream);
    stub_unlock();
    return result;
}

static CUresult copy(const char *function, CUstream stream, CUdeviceptr to, CUdeviceptr from, size_t size,
                     CUdeviceptr checked)
{
    stub_lock();
    int is_right = stub_is_device_memory(checked, size);
    stub_unlock();
    if (!is_right)
        return INVALID_VALUE;
    return enqueue(function, stream, (struct Work){NULL, NULL, to, from, size, NULL});
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t size, CUstream stream)
{
    return copy("cuMemcpyHtoDAsync", stream, to, (CUdeviceptr)from, size, to);
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t size, CUstream stream)
{
    return copy("cuMemcpyDtoHAsync", stream, (CUdeviceptr)to, from, size, from);
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t size)
{
    return cuMemcpyHtoDAsync_v2(to, from, size, NULL);
}

CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t size)
{
    return cuMemcpyDtoHAsync_v2(to, from, size, NULL);
}

CUresult cuLaunchHostFunc(CUstream stream, void (*function)(void *), void *argument)
{
    return enqueue("cuLaunchHostFunc", stream, (struct Work){function, argument, 0, 0, 0, NULL});
}

CUresult cuStreamCreate(CUstream *stream, unsigned flags)
{
    (void)flags;
    CUresult result = stub_enter("cuStreamCreate");
    if (result != SUCCESS)
        return result;
    *stream = calloc(1, sizeof **stream);
    stub_lock();
    stub_counts[STREAMS]++;
    stub_unlock();
    return SUCCESS;
}

CUresult cuStreamDestroy_v2(CUstream stream)
{
    CUresult result = stub_enter_without_context("cuStreamDestroy");
    if (result != SUCCESS)
        return result;
    stub_lock();
    stub_counts[STREAMS]--;
    stub_unlock();
    free(stream);
    return SUCCESS;
}

static void sleep_until(int64_t moment_us)
{
    for (int64_t left; (left = moment_us - stub_now_us()) > 0;)
        usleep(left > 100000 ? 100000 : (useconds_t)left);
}

CUresult cuStreamSynchronize(CUstream stream)
{
    CUresult result = stub_enter("cuStreamSynchronize");
    if (result != SUCCESS)
        return result;
    if (of(stream)->is_capturing)
        return stub_invalidate_capture(), CAPTURE_UNSUPPORTED;
    sleep_until(of(stream)->busy_until_us);
    return stub_enter("cuStreamSynchronize");
}

CUresult cuStreamQuery(CUstream stream)
{
    CUresult result = stub_enter("cuStreamQuery");
    return result != SUCCESS ? result : of(stream)->busy_until_us > stub_now_us() ? NOT_READY : SUCCESS;
}

CUresult cuEventCreate(CUevent *event, unsigned flags)
{
    CUresult result = stub_enter("cuEventCreate");
    if (result != SUCCESS)
        return result;
    *event = calloc(1, sizeof **event);
    (*event)->is_timed = !(flags & 2);
    stub_lock();
    stub_counts[EVENTS]++;
    stub_unlock();
    return SUCCESS;
}

CUresult cuEventDestroy_v2(CUevent event)
{
    CUresult result = stub_enter_without_context("cuEventDestroy");
    if (result != SUCCESS)
        return result;
    stub_lock();
    stub_counts[EVENTS]--;
    stub_unlock();
    free(event);
    return SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream stream)
{
    CUresult result = stub_enter("cuEventRecord");
    if (result != SUCCESS)
        return result;
    int64_t now = stub_now_us();
    event->done_us = of(stream)->busy_until_us > now ? of(stream)->busy_until_us : now;
    event->is_recorded = 1;
    return SUCCESS;
}

CUresult cuEventQuery(CUevent event)
{
    CUresult result = stub_enter("cuEventQuery");
    return result != SUCCESS ? result : event->is_recorded && event->done_us > stub_now_us() ? NOT_READY : SUCCESS;
}

CUresult cuEventSynchronize(CUevent event)
{
    CUresult result = stub_enter("cuEventSynchronize");
    if (result != SUCCESS)
        return result;
    sleep_until(event->done_us);
    return stub_enter("cuEventSynchronize");
}

CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end)
{
    CUresult result = stub_enter("cuEventElapsedTime");
    if (result != SUCCESS)
        return result;
    if (!start->is_timed || !end->is_timed || !start->is_recorded || !end->is_recorded)
        return INVALID_HANDLE;
    if (end->done_us > stub_now_us())
        return NOT_READY;
    *milliseconds = (float)(end->done_us - start->done_us) / 1000;
    return SUCCESS;
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end)
{
    return cuEventElapsedTime_v2(milliseconds, start, end);
}

CUresult cuStreamBeginCapture_v2(CUstream stream, int mode)
{
    CUresult result = stub_enter("cuStreamBeginCapture");
    if (result != SUCCESS)
        return result;
    if (!stream || mode != 1)
        return INVALID_VALUE;
    stream->graph = calloc(1, sizeof *stream->graph);
    stream->graph->last = &stream->graph->first;
    stream->is_capturing = 1;
    stream->is_invalidated = 0;
    capturing = stream;
    stub_lock();
    stub_counts[GRAPHS]++;
    stub_unlock();
    return SUCCESS;
}

CUresult cuGraphDestroy(CUgraph graph)
{
    if (!graph)
        return INVALID_VALUE;
    while (graph->first) {
        struct Work *next = graph->first->next;
        free(graph->first);
        graph->first = next;
    }
    free(graph);
    stub_lock();
    stub_counts[GRAPHS]--;
    stub_unlock();
    return SUCCESS;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph)
{
    if (!stream || !stream->is_capturing || capturing != stream)
        return CAPTURE_UNMATCHED;
    *graph = stream->graph;
    stream->graph = NULL;
    stream->is_capturing = 0;
    capturing = NULL;
    CUresult result = stub_enter("cuStreamEndCapture");
    if (stream->is_invalidated)
        result = CAPTURE_INVALIDATED;
    if (result != SUCCESS) {
        cuGraphDestroy(*graph);
        *graph = NULL;
    }
    return result;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *executable, CUgraph graph, unsigned long long flags)
{
    (void)flags;
    CUresult result = stub_enter("cuGraphInstantiate");
    if (result != SUCCESS)
        return result;
    struct Graph *copy = calloc(1, sizeof *copy);
    copy->last = &copy->first;
    for (struct Work *each = graph->first; each; each = each->next) {
        struct Work *node = malloc(sizeof *node);
        *node = *each;
        node->next = NULL;
        *copy->last = node;
        copy->last = &node->next;
    }
    *executable = copy;
    stub_lock();
    stub_counts[GRAPHS]++;
    stub_unlock();
    return SUCCESS;
}

CUresult cuGraphExecDestroy(CUgraphExec executable) { return cuGraphDestroy(executable); }

CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream)
{
    CUresult result = stub_enter("cuGraphLaunch");
    if (result != SUCCESS)
        return result;
    for (struct Work *each = executable->first; each; each = each->next)
        run(each);
    stub_lock();
    result = stub_work(of(stream));
    stub_unlock();
    return result;
}
