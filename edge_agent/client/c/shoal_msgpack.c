/* The part of msgpack (https://github.com/msgpack/msgpack/blob/master/spec.md) that frames need. */
#include "shoal_msgpack.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 32 };

/* ---- writing ---- */

void mp_put(mp_writer *out, const void *bytes, size_t size)
{
    if (out->failed)
        return;
    if (out->size + size > out->room) {
        size_t room = (out->size + size) * 2 + 256;
        unsigned char *grown = realloc(out->bytes, room);
        if (!grown) {
            out->failed = 1;
            return;
        }
        out->bytes = grown;
        out->room = room;
    }
    if (size)
        memcpy(out->bytes + out->size, bytes, size);
    out->size += size;
}

void mp_put_byte(mp_writer *out, unsigned byte)
{
    unsigned char one = (unsigned char)byte;
    mp_put(out, &one, 1);
}

/* The tag of a msgpack value and a big-endian number of so many bytes. */
void mp_put_number(mp_writer *out, unsigned tag, uint64_t number, int bytes)
{
    mp_put_byte(out, tag);
    while (bytes--)
        mp_put_byte(out, (unsigned)(number >> (8 * bytes)) & 0xff);
}

void mp_put_uint(mp_writer *out, uint64_t number)
{
    if (number < 0x80)
        mp_put_byte(out, (unsigned)number);
    else if (number <= 0xff)
        mp_put_number(out, 0xcc, number, 1);
    else if (number <= 0xffff)
        mp_put_number(out, 0xcd, number, 2);
    else if (number <= 0xffffffff)
        mp_put_number(out, 0xce, number, 4);
    else
        mp_put_number(out, 0xcf, number, 8);
}

void mp_put_text(mp_writer *out, const char *text)
{
    size_t size = strlen(text);
    if (size < 32)
        mp_put_byte(out, 0xa0 | (unsigned)size);
    else if (size <= 0xff)
        mp_put_number(out, 0xd9, size, 1);
    else if (size <= 0xffff)
        mp_put_number(out, 0xda, size, 2);
    else
        mp_put_number(out, 0xdb, size, 4);
    mp_put(out, text, size);
}

void mp_put_map(mp_writer *out, uint32_t count)
{
    if (count < 16)
        mp_put_byte(out, 0x80 | count);
    else
        mp_put_number(out, 0xde, count, 2);
}

void mp_put_array(mp_writer *out, uint32_t count)
{
    if (count < 16)
        mp_put_byte(out, 0x90 | count);
    else
        mp_put_number(out, 0xdc, count, 2);
}

/* ---- reading ---- */

static uint64_t take_number(mp_reader *in, int bytes)
{
    uint64_t number = 0;
    if (in->end - in->at < bytes) {
        in->failed = 1;
        return 0;
    }
    while (bytes--)
        number = number << 8 | *in->at++;
    return number;
}

static mp_value sized(mp_reader *in, int kind, uint64_t size)
{
    mp_value found = {NOTHING, 0, 0, NULL, 0};
    if (in->failed || size > (uint64_t)(in->end - in->at)) {
        in->failed = 1;
        return found;
    }
    found.kind = kind;
    found.bytes = in->at;
    found.size = (size_t)size;
    in->at += size;
    return found;
}

static mp_value counted(int kind, uint64_t number)
{
    mp_value found = {NOTHING, 0, 0, NULL, 0};
    found.kind = kind;
    found.number = number;
    return found;
}

static mp_value real_of(uint64_t bits, int bytes)
{
    mp_value found = counted(REAL, 0);
    if (bytes == 4) {
        uint32_t half = (uint32_t)bits;
        float single;
        memcpy(&single, &half, sizeof single);
        found.real = single;
    } else {
        memcpy(&found.real, &bits, sizeof found.real);
    }
    return found;
}

/* The next value; of an array or a map only its head. */
mp_value mp_take(mp_reader *in)
{
    unsigned tag = (unsigned)take_number(in, 1);
    if (in->failed)
        return counted(NOTHING, 0);
    if (tag < 0x80)
        return counted(NUMBER, tag);
    if (tag < 0x90)
        return counted(MAP, tag & 0x0f);
    if (tag < 0xa0)
        return counted(ARRAY, tag & 0x0f);
    if (tag < 0xc0)
        return sized(in, TEXT, tag & 0x1f);
    if (tag >= 0xe0) /* a negative number: nothing of ours is one */
        return counted(OTHER, 0);
    switch (tag) {
    case 0xc0: case 0xc2: return counted(NUMBER, 0); /* nil, false */
    case 0xc3: return counted(NUMBER, 1);
    case 0xc4: return sized(in, BINARY, take_number(in, 1));
    case 0xc5: return sized(in, BINARY, take_number(in, 2));
    case 0xc6: return sized(in, BINARY, take_number(in, 4));
    case 0xca: return real_of(take_number(in, 4), 4);
    case 0xcb: return real_of(take_number(in, 8), 8);
    case 0xcc: return counted(NUMBER, take_number(in, 1));
    case 0xcd: return counted(NUMBER, take_number(in, 2));
    case 0xce: return counted(NUMBER, take_number(in, 4));
    case 0xcf: return counted(NUMBER, take_number(in, 8));
    case 0xd0: case 0xd1: case 0xd2: case 0xd3:
        take_number(in, 1 << (tag - 0xd0));
        return counted(OTHER, 0);
    case 0xd9: return sized(in, TEXT, take_number(in, 1));
    case 0xda: return sized(in, TEXT, take_number(in, 2));
    case 0xdb: return sized(in, TEXT, take_number(in, 4));
    case 0xdc: return counted(ARRAY, take_number(in, 2));
    case 0xdd: return counted(ARRAY, take_number(in, 4));
    case 0xde: return counted(MAP, take_number(in, 2));
    case 0xdf: return counted(MAP, take_number(in, 4));
    default: in->failed = 1; return counted(NOTHING, 0); /* extensions: none in this protocol */
    }
}

void mp_skip(mp_reader *in, int depth)
{
    mp_value found = mp_take(in);
    uint64_t left = found.kind == MAP ? 2 * found.number : found.kind == ARRAY ? found.number : 0;
    if (depth == MAX_DEPTH)
        in->failed = 1;
    while (left-- && !in->failed)
        mp_skip(in, depth + 1);
}

int mp_is(const mp_value *key, const char *text)
{
    return key->kind == TEXT && key->size == strlen(text) && memcmp(key->bytes, text, key->size) == 0;
}

/* A text in place: it is moved one byte to the front, over its own head, to make room for its end. */
const char *mp_text(const mp_value *found)
{
    char *begin;
    if (found->kind != TEXT)
        return "";
    begin = (char *)(uintptr_t)found->bytes - 1;
    memmove(begin, found->bytes, found->size);
    begin[found->size] = 0;
    return begin;
}
