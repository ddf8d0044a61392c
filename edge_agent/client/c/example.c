/* Asks a model about one row of zeros, tells its best class, and gives feedback.
 *
 *     cc -std=c99 -o example example.c shoal.c shoal_frames.c shoal_msgpack.c
 *     ./example /run/shoal/frames.sock digits image 64
 */
#include "shoal.h"

#include <stdio.h>
#include <stdlib.h>

static int report(const shoal_client *client)
{
    const shoal_failure *failure = shoal_error(client);
    fprintf(stderr, "%d %s: %s\n", failure->status, failure->kind, failure->text);
    return 1;
}

int main(int count, char **arguments)
{
    shoal_client *client;
    shoal_request request = {0};
    shoal_tensor input;
    shoal_answer answer;
    uint64_t shape[2] = {1, 0};
    float *row;
    uint64_t index, best = 0;
    int result;

    if (count != 5) {
        fprintf(stderr, "usage: %s SOCKET MODEL INPUT NUMBERS\n", arguments[0]);
        return 2;
    }
    shape[1] = strtoull(arguments[4], NULL, 10);
    row = calloc(shape[1] ? (size_t)shape[1] : 1, sizeof *row);
    client = shoal_connect(arguments[1], 10000);
    if (!row || !client)
        return 1;

    input = shoal_tensor_of(arguments[3], SHOAL_FP32, 2, shape, row, (size_t)shape[1] * sizeof *row);
    request.model = arguments[2];
    request.inputs = &input;
    request.input_count = 1;
    result = shoal_infer(client, &request, &answer);
    if (result != 0) {
        result = report(client);
    } else {
        const shoal_tensor *output = &answer.outputs[0];
        const float *values = output->data;
        for (index = 1; index < output->size / sizeof *values; index++)
            if (values[index] > values[best])
                best = index;
        printf("%s %s, request %s: class %llu with %.4f\n", answer.model, answer.version, answer.request,
               (unsigned long long)best, values[best]);
        if (answer.label_wanted && shoal_feedback(client, answer.model, answer.request, "0", -1) != 0)
            result = report(client);
        shoal_answer_free(&answer);
    }
    shoal_close(client);
    free(row);
    return result;
}
