/* Stands for libnvidia-ml.so.1 where there is no NVIDIA driver: the functions that the reader of NVML uses, with the
 * signatures of docs.nvidia.com/deploy/nvml-api, and answers from the environment, read at every call:
 *
 *   SHOAL_STUB_NVML_INIT          error code of nvmlInit_v2
 *   SHOAL_STUB_NVML_GPUS          number of GPUs; default 1
 *   SHOAL_STUB_NVML_NAME          their name
 *   SHOAL_STUB_NVML_BUSY          percent
 *   SHOAL_STUB_NVML_REASONS       bits of nvmlClocksEventReasons
 *   SHOAL_STUB_NVML_UNSUPPORTED   functions that answer NVML_ERROR_NOT_SUPPORTED, by name, in one string
 *   SHOAL_STUB_NVML_LOST          functions that answer NVML_ERROR_GPU_IS_LOST, likewise
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned int gpu, memory; } utilization_t;
typedef struct { unsigned long long total, free, used; } memory_t;

static int opened, temperature_calls;

static unsigned long number(const char *name, unsigned long otherwise) {
  const char *text = getenv(name);
  return text && *text ? strtoul(text, NULL, 0) : otherwise;
}

static int refuses(const char *function) {
  const char *unsupported = getenv("SHOAL_STUB_NVML_UNSUPPORTED"), *lost = getenv("SHOAL_STUB_NVML_LOST");
  if (opened <= 0) return 1;
  if (unsupported && strstr(unsupported, function)) return 3;
  if (lost && strstr(lost, function)) return 15;
  return 0;
}

#define ANSWER(function, statement)     \
  int code = refuses(#function);        \
  (void)gpu;                            \
  if (code) return code;                \
  statement;                            \
  return 0

int stub_opened(void) { return opened; }
int stub_temperature_calls(void) { return temperature_calls; }

int nvmlInit_v2(void) {
  int code = (int)number("SHOAL_STUB_NVML_INIT", 0);
  if (!code) opened++;
  return code;
}
int nvmlShutdown(void) { opened--; return 0; }
const char *nvmlErrorString(int code) {
  return code == 9 ? "Driver Not Loaded" : code == 15 ? "GPU is lost" : "Unknown Error";
}
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = (unsigned)number("SHOAL_STUB_NVML_GPUS", 1); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **gpu) { *gpu = (void *)(uintptr_t)(index + 1); return 0; }
int nvmlDeviceGetName(void *gpu, char *name, unsigned int length) {
  const char *text = getenv("SHOAL_STUB_NVML_NAME");
  ANSWER(nvmlDeviceGetName, (strncpy(name, text ? text : "NVIDIA Stub", length), name[length - 1] = 0));
}
int nvmlDeviceGetUtilizationRates(void *gpu, utilization_t *rates) {
  ANSWER(nvmlDeviceGetUtilizationRates, (rates->gpu = (unsigned)number("SHOAL_STUB_NVML_BUSY", 42), rates->memory = 7));
}
int nvmlDeviceGetMemoryInfo(void *gpu, memory_t *memory) {
  ANSWER(nvmlDeviceGetMemoryInfo, (memory->total = 80ull << 30, memory->used = 3ull << 30, memory->free = 77ull << 30));
}
int nvmlDeviceGetTemperature(void *gpu, int sensor, unsigned int *degrees) {
  (void)sensor;
  temperature_calls++;
  ANSWER(nvmlDeviceGetTemperature, *degrees = 51);
}
int nvmlDeviceGetPowerUsage(void *gpu, unsigned int *milliwatts) {
  ANSWER(nvmlDeviceGetPowerUsage, *milliwatts = 215500);
}
int nvmlDeviceGetClockInfo(void *gpu, int clock, unsigned int *mhz) {
  ANSWER(nvmlDeviceGetClockInfo, *mhz = clock == 0 ? 1410 : 9);
}
int nvmlDeviceGetMaxClockInfo(void *gpu, int clock, unsigned int *mhz) {
  ANSWER(nvmlDeviceGetMaxClockInfo, *mhz = clock == 0 ? 1980 : 9);
}
/* The old name alone, as drivers before 535 have it. */
int nvmlDeviceGetCurrentClocksThrottleReasons(void *gpu, unsigned long long *reasons) {
  ANSWER(nvmlDeviceGetCurrentClocksThrottleReasons, *reasons = number("SHOAL_STUB_NVML_REASONS", 1));
}
