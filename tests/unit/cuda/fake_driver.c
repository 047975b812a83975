/* A CUDA driver without a GPU: it answers the calls that jitmk makes and writes down what it was given.
 *
 * Built as libcuda.so.1 and put in front of the real one, it shows what cuda.bindings really passes on: the launch
 * configuration, the attributes, the bytes of the parameters. It knows the layouts of the driver API's C structs
 * (CUDA Driver API, "Data types used by CUDA driver") and nothing else.
 *
 * FAKE_LOG: file for one line a call. FAKE_COUNT: GPUs. FAKE_MAJOR, FAKE_MINOR: their compute capability.
 * FAKE_CONTEXTS: also note what threads do with contexts.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, NO_CONTEXT = 201, NO_BINARY_FOR_GPU = 209, NOT_FOUND = 500, LAUNCH_FAILED = 719 };

typedef unsigned long long device_pointer;

struct launch_attribute {
  int id;
  char padding[4];
  char value[64];
};

struct launch_config {
  unsigned grid[3], block[3], shared;
  void *stream;
  struct launch_attribute *attributes;
  unsigned attribute_count;
};

enum { MOST_CONTEXTS = 8 };
static __thread void *contexts[MOST_CONTEXTS]; /* a thread's stack of them, of which the last is current */
static __thread int depth;
#define current_context (depth ? contexts[depth - 1] : NULL)
static void *const primary_context = (void *)0xC0DE;

static void note(const char *format, ...) {
  const char *path = getenv("FAKE_LOG");
  FILE *file = path ? fopen(path, "a") : NULL;
  if (!file) return;
  va_list arguments;
  va_start(arguments, format);
  vfprintf(file, format, arguments);
  va_end(arguments);
  fputc('\n', file);
  fclose(file);
}

static int number(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text ? atoi(text) : otherwise;
}

int cuInit(unsigned flags) { return (int)flags; }
int cuDriverGetVersion(int *version) { *version = 12090; return SUCCESS; }
int cuDeviceGetCount(int *count) { *count = number("FAKE_COUNT", 1); return SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return SUCCESS; }
int cuDeviceGetName(char *name, int size, int device) {
  snprintf(name, (size_t)size, "Fake GPU %d", device);
  return SUCCESS;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)1 << (36 + device); return SUCCESS; }

int cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
    case 13: *value = 1980000; break;                     /* CLOCK_RATE */
    case 16: *value = 78 + device; break;                 /* MULTIPROCESSOR_COUNT */
    case 36: *value = 3201000; break;                     /* MEMORY_CLOCK_RATE */
    case 37: *value = 6144; break;                        /* GLOBAL_MEMORY_BUS_WIDTH */
    case 38: *value = 33 << 20; break;                    /* L2_CACHE_SIZE */
    case 75: *value = number("FAKE_MAJOR", 9); break;     /* COMPUTE_CAPABILITY_MAJOR */
    case 76: *value = number("FAKE_MINOR", 0); break;     /* COMPUTE_CAPABILITY_MINOR */
    case 82: *value = 65536; break;                       /* MAX_REGISTERS_PER_MULTIPROCESSOR */
    case 95: *value = number("FAKE_COOPERATIVE", 1); break; /* COOPERATIVE_LAUNCH */
    case 97: *value = 232448; break;                      /* MAX_SHARED_MEMORY_PER_BLOCK_OPTIN */
    default: return 1;
  }
  return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
  note("retain %d", device);
  *context = primary_context;
  return SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int device) { note("release %d", device); return SUCCESS; }
int cuCtxGetCurrent(void **context) { *context = current_context; return SUCCESS; }
int cuCtxGetDevice(int *device) { *device = 0; return SUCCESS; }
int cuCtxPushCurrent_v2(void *context) {
  if (number("FAKE_CONTEXTS", 0)) note("push %p", context);
  if (depth == MOST_CONTEXTS) return OUT_OF_MEMORY;
  contexts[depth++] = context;
  return SUCCESS;
}
int cuCtxPopCurrent_v2(void **context) {
  if (number("FAKE_CONTEXTS", 0)) note("pop %p", current_context);
  if (depth == 0) return NO_CONTEXT;
  *context = contexts[--depth];
  return SUCCESS;
}
int cuCtxSynchronize(void) { return current_context ? SUCCESS : NO_CONTEXT; }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
  if (!current_context) return NO_CONTEXT;
  *free_bytes = 5;
  *total = 6;
  return SUCCESS;
}

int cuModuleLoadData(void **module, const void *image) {
  note("load %.8s in %p", (const char *)image, current_context);
  if (!memcmp(image, "TOONEW", 6)) return NO_BINARY_FOR_GPU;
  if (!memcmp(image, "TOOBIG", 6)) return OUT_OF_MEMORY;
  *module = (void *)0xA0;
  return SUCCESS;
}
int cuModuleUnload(void *module) { note("unload %p", module); return SUCCESS; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
  (void)module;
  *function = (void *)0xF0;
  return strcmp(name, "kernel") ? NOT_FOUND : SUCCESS;
}
int cuFuncGetAttribute(int *value, int attribute, void *function) {
  (void)function;
  const int values[] = {768, 1024, 0, 16, 80}; /* MAX_THREADS_PER_BLOCK, SHARED, CONST, LOCAL, NUM_REGS */
  *value = values[attribute];
  return SUCCESS;
}
int cuFuncSetAttribute(void *function, int attribute, int value) {
  note("set %p %d %d", function, attribute, value);
  return SUCCESS;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads, size_t shared) {
  (void)function;
  *blocks = threads > 512 || shared > 200000 ? 0 : 1;
  return SUCCESS;
}

int cuLaunchKernelEx(const struct launch_config *config, void *function, void **parameters, void **extra) {
  const device_pointer *words = parameters[0];
  note("launch %p in %p grid %u %u %u block %u %u %u shared %u stream %p attributes %u id %d value %d words %llx %llx "
       "extra %d",
       function, current_context, config->grid[0], config->grid[1], config->grid[2], config->block[0],
       config->block[1], config->block[2], config->shared, config->stream, config->attribute_count,
       config->attribute_count ? config->attributes[0].id : -1,
       config->attribute_count ? *(const int *)config->attributes[0].value : -1, words[0], words[1], extra != NULL);
  return words[0] == 0xBAD ? LAUNCH_FAILED : SUCCESS;
}

int cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
  note("pin %zu %u", bytes, flags);
  if (bytes > 1 << 20) return OUT_OF_MEMORY;
  *address = malloc(bytes);
  memset(*address, 0xEE, bytes);
  return SUCCESS;
}
int cuMemHostGetDevicePointer_v2(device_pointer *pointer, void *address, unsigned flags) {
  *pointer = (device_pointer)address + 0x1000 + flags;
  return SUCCESS;
}
int cuMemFreeHost(void *address) {
  note("unpin");
  free(address);
  return SUCCESS;
}

int cuGetErrorName(int status, const char **name) {
  *name = status == OUT_OF_MEMORY       ? "CUDA_ERROR_OUT_OF_MEMORY"
          : status == NO_BINARY_FOR_GPU ? "CUDA_ERROR_NO_BINARY_FOR_GPU"
          : status == NOT_FOUND         ? "CUDA_ERROR_NOT_FOUND"
                                        : "CUDA_ERROR_LAUNCH_FAILED";
  return SUCCESS;
}
int cuGetErrorString(int status, const char **text) { (void)status; *text = "a text"; return SUCCESS; }

int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *found) {
  (void)version;
  (void)flags;
  void *self = dlopen("libcuda.so.1", RTLD_NOW);
  char newer[256];
  snprintf(newer, sizeof newer, "%s_v2", name);
  *function = dlsym(self, newer);
  if (!*function) *function = dlsym(self, name);
  if (found) *found = *function ? 0 : 1;
  return *function ? SUCCESS : NOT_FOUND;
}
int cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags) {
  return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
