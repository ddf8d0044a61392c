/* Exercises the C client against a device: driver SOCKET say|many|large|wrong|feedback|restart|fuzz; prints what came. */
#include "shoal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PIXELS = 64, CLASSES = 10 };

static int report(const shoal_client *client)
{
    const shoal_failure *failure = shoal_error(client);
    printf("failure %llu %d %s %.1f %s\n", (unsigned long long)failure->id, failure->status, failure->kind,
           failure->retry_after_s, failure->text);
    return 1;
}

static shoal_tensor image_of(const float *pixels, uint64_t rows)
{
    uint64_t shape[2];
    shape[0] = rows;
    shape[1] = PIXELS;
    return shoal_tensor_of("image", SHOAL_FP32, 2, shape, pixels, (size_t)rows * PIXELS * sizeof *pixels);
}

static void print_answer(const shoal_answer *answer)
{
    uint64_t row, class;
    const float *values = answer->outputs[0].data;
    printf("answer %s %s %s %s %d %s %u\n", answer->model, answer->version, answer->package, answer->request,
           answer->label_wanted, answer->outputs[0].name, answer->outputs[0].axes);
    for (row = 0; row < answer->outputs[0].shape[0] && row < 4; row++)
        for (class = 0; class < answer->outputs[0].shape[1]; class++)
            printf("%.9g%c", (double)values[row * CLASSES + class], class + 1 < CLASSES ? ' ' : '\n');
}

static int ask(shoal_client *client, shoal_request *request, const float *pixels, uint64_t rows)
{
    shoal_answer answer;
    shoal_tensor image = image_of(pixels, rows);
    request->inputs = &image;
    request->input_count = 1;
    if (shoal_infer(client, request, &answer) != 0)
        return report(client);
    if ((uintptr_t)answer.outputs[0].data % 8)
        printf("askew\n");
    print_answer(&answer);
    shoal_answer_free(&answer);
    return 0;
}

static int ask_many(shoal_client *client, const float *pixels, int count)
{
    char seen[1000] = {0};
    int sent = 0, received = 0;
    while (received < count) {
        shoal_answer answer;
        if (sent < count && sent - received < 32) {
            shoal_tensor image = image_of(pixels + sent % 4 * PIXELS, 1);
            shoal_request request = {0};
            uint64_t id;
            request.model = "digits";
            request.inputs = &image;
            request.input_count = 1;
            if (shoal_send(client, &request, &id) != 0)
                return report(client);
            sent++;
            continue;
        }
        if (shoal_receive(client, &answer) != 0)
            return report(client);
        seen[answer.id]++;
        shoal_answer_free(&answer);
        received++;
    }
    for (sent = 1; sent <= count; sent++)
        if (seen[sent] != 1)
            return 1;
    printf("many %d\n", count);
    return 0;
}

int main(int count, char **arguments)
{
    static float pixels[4 * PIXELS];
    shoal_client *client;
    shoal_request request = {0};
    const char *what;
    int result = 0;
    size_t read;
    if (count != 3)
        return 2;
    what = arguments[2];
    read = fread(pixels, sizeof *pixels, 4 * PIXELS, stdin);
    client = shoal_connect(arguments[1], 10000);
    if (!client || (read != 4 * PIXELS && strcmp(what, "fuzz") != 0))
        return 2;
    request.model = "digits";
    if (strcmp(what, "say") == 0) {
        const char *wanted[1] = {"probabilities"};
        if (shoal_ping(client) != 0)
            return report(client);
        request.request = "from-c";
        request.group = "ship-4";
        request.version = "1";
        request.priority = 3;
        request.timeout_us = 9000000;
        request.outputs = wanted;
        request.output_count = 1;
        result = ask(client, &request, pixels, 4);
    } else if (strcmp(what, "many") == 0) {
        result = ask_many(client, pixels, 500);
    } else if (strcmp(what, "large") == 0) {
        float *large = malloc(1000 * sizeof pixels / 4);
        size_t row;
        for (row = 0; large && row < 1000; row += 4)
            memcpy(large + row * PIXELS, pixels, sizeof pixels);
        result = large ? ask(client, &request, large, 1000) : 1;
        free(large);
    } else if (strcmp(what, "wrong") == 0) {
        pixels[PIXELS + 5] = 7;
        ask(client, &request, pixels, 4);
        pixels[PIXELS + 5] = 0;
        request.model = "nothing";
        ask(client, &request, pixels, 4);
        request.model = "digits";
        request.input_count = 0;
        request.probe = 1;
        result = ask(client, &request, pixels, 1);
    } else if (strcmp(what, "feedback") == 0) {
        request.request = "from-c";
        result = ask(client, &request, pixels, 1);
        if (shoal_feedback(client, "digits", "from-c", "7", 0) != 0)
            result = report(client);
        if (shoal_feedback(client, "digits", "nobody", "7", -1) != 0)
            report(client);
    } else if (strcmp(what, "fuzz") == 0) {
        int index, answers = 0, refusals = 0, broken = 0;
        for (index = 0; index < 2000; index++) {
            shoal_tensor image = image_of(pixels, 1);
            shoal_answer answer;
            uint64_t id;
            request.inputs = &image;
            request.input_count = 1;
            /* Not shoal_infer: these answers carry other numbers. */
            if (shoal_send(client, &request, &id) == 0 && shoal_receive(client, &answer) == 0) {
                answers++;
                shoal_answer_free(&answer);
            } else if (shoal_error(client)->status) {
                refusals++;
            } else {
                broken++;
            }
        }
        printf("%d %d %d\n", answers, refusals, broken);
    }
    shoal_close(client);
    return result;
}
