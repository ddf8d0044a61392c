/* Requests and answers of the frames protocol as bytes; docs/frames.md describes each of them. */
#include "shoal_frames.h"

#include <string.h>

enum { ALIGNMENT = 8 };

static const char *const DATATYPES[] = {"BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16",
                                        "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"};
static const size_t SIZES[] = {1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 4, 8, 0};

size_t shoal_datatype_size(shoal_datatype datatype) { return SIZES[datatype]; }

/* ---- what frames are made of ---- */

void sf_put_text(mp_writer *out, const char *key, const char *text)
{
    mp_put_text(out, key);
    mp_put_text(out, text);
}

void sf_put_uint(mp_writer *out, const char *key, uint64_t number)
{
    mp_put_text(out, key);
    mp_put_uint(out, number);
}

/* Room for the length, then the members that every request begins with. */
void sf_begin(mp_writer *out, const char *op, uint64_t id, uint32_t further_members)
{
    mp_put(out, "\0\0\0\0", LENGTH_BYTES);
    mp_put_map(out, 3 + further_members);
    sf_put_text(out, "op", op);
    sf_put_uint(out, "v", 1);
    sf_put_uint(out, "id", id);
}

void sf_set_length(mp_writer *out, size_t size)
{
    int index;
    for (index = 0; index < LENGTH_BYTES && !out->failed; index++)
        out->bytes[index] = (unsigned char)(size >> (8 * index));
}

/* All of a tensor but its values, which begin at a multiple of 8 bytes from the frame's first. */
void sf_put_tensor_head(mp_writer *out, const shoal_tensor *tensor, size_t before)
{
    uint32_t axis;
    unsigned pad;
    mp_put_map(out, 5);
    sf_put_text(out, "name", tensor->name);
    sf_put_text(out, "type", DATATYPES[tensor->datatype]);
    mp_put_text(out, "shape");
    mp_put_array(out, tensor->axes);
    for (axis = 0; axis < tensor->axes; axis++)
        mp_put_uint(out, tensor->shape[axis]);
    mp_put_text(out, "pad");
    /* Still to come: the pad's head and itself, the key "data", a bin 32 head. */
    pad = (unsigned)((ALIGNMENT - (before + out->size + 2 + 5 + 5) % ALIGNMENT) % ALIGNMENT);
    mp_put_number(out, 0xc4, pad, 1);
    mp_put(out, "\0\0\0\0\0\0\0", pad);
    mp_put_text(out, "data");
    mp_put_number(out, 0xc6, tensor->size, 4);
}

/* ---- reading answers ---- */

static void copy_text(char *to, size_t room, const mp_value *found)
{
    size_t size = found->kind == TEXT ? found->size : 0;
    if (size >= room)
        size = room - 1;
    if (size)
        memcpy(to, found->bytes, size);
    to[size] = 0;
}

static void read_shape(mp_reader *in, shoal_tensor *tensor)
{
    mp_value head = mp_take(in);
    uint64_t index;
    if (head.kind != ARRAY || head.number > SHOAL_MAX_AXES) {
        in->failed = 1;
        return;
    }
    tensor->axes = (uint32_t)head.number;
    for (index = 0; index < head.number; index++) {
        mp_value axis = mp_take(in);
        in->failed |= axis.kind != NUMBER;
        tensor->shape[index] = axis.number;
    }
}

static void read_datatype(mp_reader *in, shoal_tensor *tensor)
{
    mp_value name = mp_take(in);
    unsigned index;
    for (index = 0; index < sizeof DATATYPES / sizeof *DATATYPES; index++)
        if (mp_is(&name, DATATYPES[index])) {
            tensor->datatype = (shoal_datatype)index;
            return;
        }
    in->failed = 1;
}

/* Whether the values fill the shape: whoever uses them trusts the shape. */
static int fills(const shoal_tensor *tensor)
{
    uint64_t size = SIZES[tensor->datatype];
    uint32_t axis;
    if (!size)
        return 1;
    for (axis = 0; axis < tensor->axes; axis++) {
        if (tensor->shape[axis] && size > UINT64_MAX / tensor->shape[axis])
            return 0;
        size *= tensor->shape[axis];
    }
    return size == tensor->size;
}

static void read_tensor(mp_reader *in, shoal_tensor *tensor)
{
    mp_value map = mp_take(in), data = {NOTHING, 0, 0, NULL, 0};
    const char *name = "";
    uint64_t left = map.kind == MAP ? map.number : 0;
    in->failed |= map.kind != MAP;
    while (left-- && !in->failed) {
        mp_value key = mp_take(in);
        if (mp_is(&key, "name")) {
            mp_value found = mp_take(in);
            name = mp_text(&found);
        } else if (mp_is(&key, "type")) {
            read_datatype(in, tensor);
        } else if (mp_is(&key, "shape")) {
            read_shape(in, tensor);
        } else if (mp_is(&key, "data")) {
            data = mp_take(in);
        } else {
            mp_skip(in, 0);
        }
    }
    tensor->name = name;
    tensor->data = data.bytes;
    tensor->size = data.size;
    /* Outputs in shared memory carry no data; this client never asks for any. */
    in->failed |= data.kind != BINARY || !fills(tensor);
}

static void read_outputs(mp_reader *in, shoal_answer *answer)
{
    mp_value head = mp_take(in);
    uint64_t index;
    if (head.kind != ARRAY || head.number > SHOAL_MAX_TENSORS) {
        in->failed = 1;
        return;
    }
    for (index = 0; index < head.number && !in->failed; index++)
        read_tensor(in, &answer->outputs[index]);
    answer->output_count = (uint32_t)head.number;
}

static void read_violations(mp_reader *in, shoal_answer *answer)
{
    mp_value head = mp_take(in);
    uint64_t left = head.number;
    in->failed |= head.kind != ARRAY;
    answer->violations = (uint32_t)head.number;
    while (left-- && !in->failed)
        mp_skip(in, 0);
}

/* The answer or the failure in a frame; 1 where it is a failure. */
int sf_read_answer(mp_reader *in, shoal_answer *answer, shoal_failure *failure)
{
    mp_value map = mp_take(in);
    uint64_t left = map.number;
    int failed_request = 0;
    in->failed |= map.kind != MAP;
    while (left-- && !in->failed) {
        mp_value key = mp_take(in), found;
        if (mp_is(&key, "outputs")) {
            read_outputs(in, answer);
            continue;
        }
        if (mp_is(&key, "violations")) {
            read_violations(in, answer);
            continue;
        }
        if (!mp_is(&key, "op") && !mp_is(&key, "id") && !mp_is(&key, "model") && !mp_is(&key, "version") && !mp_is(&key, "package") &&
            !mp_is(&key, "request") && !mp_is(&key, "label_wanted") && !mp_is(&key, "status") && !mp_is(&key, "kind") &&
            !mp_is(&key, "error") && !mp_is(&key, "retry_after_s")) {
            mp_skip(in, 0);
            continue;
        }
        found = mp_take(in);
        if (mp_is(&key, "op"))
            failed_request = mp_is(&found, "error");
        else if (mp_is(&key, "id"))
            answer->id = found.number;
        else if (mp_is(&key, "model"))
            answer->model = mp_text(&found);
        else if (mp_is(&key, "version"))
            answer->version = mp_text(&found);
        else if (mp_is(&key, "package"))
            answer->package = mp_text(&found);
        else if (mp_is(&key, "request"))
            answer->request = mp_text(&found);
        else if (mp_is(&key, "label_wanted"))
            answer->label_wanted = found.number != 0;
        else if (mp_is(&key, "status"))
            failure->status = (int)found.number;
        else if (mp_is(&key, "kind"))
            copy_text(failure->kind, sizeof failure->kind, &found);
        else if (mp_is(&key, "error"))
            copy_text(failure->text, sizeof failure->text, &found);
        else
            failure->retry_after_s = found.kind == REAL ? found.real : (double)found.number;
    }
    failure->id = answer->id;
    return failed_request;
}

void sf_put_options(mp_writer *out, const shoal_request *request)
{
    uint32_t index;
    sf_put_text(out, "model", request->model);
    if (request->version)
        sf_put_text(out, "version", request->version);
    if (request->request)
        sf_put_text(out, "request", request->request);
    if (request->group)
        sf_put_text(out, "group", request->group);
    if (request->priority)
        sf_put_uint(out, "priority", request->priority);
    if (request->timeout_us)
        sf_put_uint(out, "timeout_us", request->timeout_us);
    if (request->probe) {
        mp_put_text(out, "monitor");
        mp_put_byte(out, 0xc2);
    }
    if (request->outputs) {
        mp_put_text(out, "outputs");
        mp_put_array(out, request->output_count);
        for (index = 0; index < request->output_count; index++) {
            mp_put_map(out, 1);
            sf_put_text(out, "name", request->outputs[index]);
        }
    }
}

uint32_t sf_option_count(const shoal_request *request)
{
    return 2u + !!request->version + !!request->request + !!request->group + !!request->priority +
           !!request->timeout_us + !!request->probe + !!request->outputs;
}
