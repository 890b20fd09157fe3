/* A stand-in for the driver's libnvidia-ml.so.1: what llmcluster calls of NVML, over GPUs that live in a mapped file.
 *
 * The file is named by LLMCLUSTER_NVML_STATE and laid out as below; deploy/rehearsal/nvml.py writes the same layout.
 * Prototypes, structures and codes follow NVIDIA's public NVML reference, written anew and only as far as needed.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       DRIVER_NOT_LOADED = 9, VERSION_MISMATCH = 18 };

/* What faults are injected into, and calls are counted by. */
enum call { HANDLE, INSTANT, AVERAGE, USAGE, ENERGY, TEMPERATURE, THRESHOLD, MARGIN, CLOCK, UTILISATION, MEMORY,
            THROTTLE, LIMIT, MIG, SET_LIMIT, SET_CLOCK, CALLS };

struct gpu {
    uint64_t energy_mj, memory_used, memory_total, throttle;
    uint64_t calls[CALLS];
    uint32_t fault[CALLS];   /* the code to give back; 0 for none */
    volatile uint32_t hang_ms[CALLS]; /* how long to stay silent before that */
    uint32_t instant_mw, average_mw, limit_mw, default_mw, lowest_mw, highest_mw;
    uint32_t ceiling_mw; /* of another limiter, such as a board controller; 0 for none */
    int32_t temperature_c, slowdown_c;
    uint32_t clock_mhz, max_clock_mhz, lock_low_mhz, lock_high_mhz; /* a lock of 0 and 0 is none */
    uint32_t utilisation_pct, mig, min_clock_mhz;
    char uuid[48], name[64];
};

struct state {
    uint32_t magic, version, header_bytes, gpu_bytes, gpus, init_fault, spare[2];
    struct gpu gpu[];
};

#define MAGIC 0x4d4c564eu
#define VERSION 1u
#define SLOWDOWN_TLIMIT (-2) /* °C below a margin of zero at which hardware slows an H100 down, as nvidia-smi says */

/* Tells this library from the driver's. */
const uint32_t llmcluster_stub = VERSION;

/* Never unmapped: a call may still be asleep in here when another thread shuts down. */
static struct state *state;
static int users;
static pthread_mutex_t door = PTHREAD_MUTEX_INITIALIZER;

static int map_state(void) {
    const char *path = getenv("LLMCLUSTER_NVML_STATE");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return DRIVER_NOT_LOADED;
    struct stat facts;
    size_t bytes = fstat(file, &facts) ? 0 : (size_t)facts.st_size;
    struct state *map = bytes < sizeof *map ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (map == MAP_FAILED) return DRIVER_NOT_LOADED;
    if (map->magic != MAGIC || map->version != VERSION || map->header_bytes != sizeof *map
        || map->gpu_bytes != sizeof(struct gpu) || bytes < sizeof *map + (size_t)map->gpus * sizeof(struct gpu))
        return munmap(map, bytes), VERSION_MISMATCH;
    state = map;
    return (int)map->init_fault;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    pthread_mutex_lock(&door);
    int code = users ? SUCCESS : map_state();
    users += code == SUCCESS;
    pthread_mutex_unlock(&door);
    return code;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    pthread_mutex_lock(&door);
    int code = users ? SUCCESS : UNINITIALIZED;
    users -= code == SUCCESS;
    pthread_mutex_unlock(&door);
    return code;
}

const char *nvmlErrorString(int code) {
    static _Thread_local char text[40];
    snprintf(text, sizeof text, "emulated NVML error %d", code);
    return text;
}

static int copy(const char *from, char *to, unsigned room) {
    if (strlen(from) >= room) return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *text, unsigned room) {
    return users ? copy("0.0-emulated", text, room) : UNINITIALIZED;
}

/* Every call on a GPU begins here: it is counted, hangs if it is to hang, and fails if it is to fail. */
static int begin(struct gpu *gpu, enum call call) {
    if (!users) return UNINITIALIZED;
    if (gpu < state->gpu || gpu >= state->gpu + state->gpus) return INVALID_ARGUMENT;
    __atomic_fetch_add(&gpu->calls[call], 1, __ATOMIC_RELAXED);
    for (uint32_t ms = 0; ms < gpu->hang_ms[call]; ms++) /* read anew, so that healing wakes it */
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    return (int)gpu->fault[call];
}

/* Defines a getter: `int name(gpu, argument)` that does `body` unless the call fails. */
#define CALL(name, call, arguments, body) \
    int name arguments { \
        int code = begin(gpu, call); \
        if (code) return code; \
        body; \
        return SUCCESS; \
    }

int nvmlDeviceGetCount_v2(unsigned *count) {
    if (!users) return UNINITIALIZED;
    *count = state->gpus;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct gpu **gpu) {
    if (!users) return UNINITIALIZED;
    if (index >= state->gpus) return INVALID_ARGUMENT;
    *gpu = &state->gpu[index];
    return begin(*gpu, HANDLE);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, struct gpu **gpu) {
    if (!users) return UNINITIALIZED;
    for (uint32_t i = 0; i < state->gpus; i++)
        if (!strcmp(state->gpu[i].uuid, uuid)) return nvmlDeviceGetHandleByIndex_v2(i, gpu);
    return NOT_FOUND;
}

CALL(nvmlDeviceGetUUID, HANDLE, (struct gpu *gpu, char *text, unsigned room), return copy(gpu->uuid, text, room))
CALL(nvmlDeviceGetName, HANDLE, (struct gpu *gpu, char *text, unsigned room), return copy(gpu->name, text, room))

static uint32_t enforced(const struct gpu *gpu) {
    return gpu->ceiling_mw && gpu->ceiling_mw < gpu->limit_mw ? gpu->ceiling_mw : gpu->limit_mw;
}

struct field {
    uint32_t id, scope;
    int64_t timestamp_us, latency_us;
    uint32_t type;
    int code;
    union { uint32_t u; int32_t i; uint64_t raw; } value;
};

enum { POWER_AVERAGE = 185, POWER_INSTANT = 186, SLOWDOWN = 194 };
enum { UNSIGNED_INT = 1, SIGNED_INT = 5 };

static void answer(struct gpu *gpu, struct field *field) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    field->timestamp_us = now.tv_sec * 1000000LL + now.tv_nsec / 1000;
    field->latency_us = 0;
    field->value.raw = 0;
    field->type = UNSIGNED_INT;
    field->code = SUCCESS;
    if (field->id == SLOWDOWN) {
        field->type = SIGNED_INT;
        field->value.i = SLOWDOWN_TLIMIT;
        field->code = begin(gpu, MARGIN);
    } else if ((field->id == POWER_INSTANT || field->id == POWER_AVERAGE) && field->scope == 0) {
        int instant = field->id == POWER_INSTANT;
        field->code = begin(gpu, instant ? INSTANT : AVERAGE);
        field->value.u = instant ? gpu->instant_mw : gpu->average_mw;
    } else {
        field->code = NOT_SUPPORTED;
    }
}

int nvmlDeviceGetFieldValues(struct gpu *gpu, int count, struct field *fields) {
    if (!users) return UNINITIALIZED;
    for (int i = 0; i < count; i++) answer(gpu, &fields[i]);
    return SUCCESS;
}

CALL(nvmlDeviceGetPowerUsage, USAGE, (struct gpu *gpu, unsigned *mw), *mw = gpu->average_mw)
CALL(nvmlDeviceGetTotalEnergyConsumption, ENERGY, (struct gpu *gpu, unsigned long long *mj), *mj = gpu->energy_mj)

int nvmlDeviceGetTemperature(struct gpu *gpu, int sensor, unsigned *celsius) {
    int code = begin(gpu, TEMPERATURE);
    if (code) return code;
    if (sensor) return INVALID_ARGUMENT; /* 0: the die */
    *celsius = (unsigned)gpu->temperature_c;
    return SUCCESS;
}

int nvmlDeviceGetTemperatureThreshold(struct gpu *gpu, int threshold, unsigned *celsius) {
    int code = begin(gpu, THRESHOLD);
    if (code) return code;
    if (threshold != 1) return NOT_SUPPORTED; /* 1: slowdown */
    *celsius = (unsigned)gpu->slowdown_c;
    return SUCCESS;
}

struct margin { uint32_t version; int32_t celsius; };

CALL(nvmlDeviceGetMarginTemperature, MARGIN, (struct gpu *gpu, struct margin *margin),
     margin->celsius = gpu->slowdown_c + SLOWDOWN_TLIMIT - gpu->temperature_c)

int nvmlDeviceGetClockInfo(struct gpu *gpu, int type, unsigned *mhz) {
    int code = begin(gpu, CLOCK);
    if (code) return code;
    if (type != 0 && type != 1) return NOT_SUPPORTED; /* 0: graphics, 1: SM */
    *mhz = gpu->lock_high_mhz && gpu->lock_high_mhz < gpu->clock_mhz ? gpu->lock_high_mhz : gpu->clock_mhz;
    return SUCCESS;
}

CALL(nvmlDeviceGetMaxClockInfo, CLOCK, (struct gpu *gpu, int type, unsigned *mhz), (void)type; *mhz = gpu->max_clock_mhz)

int nvmlDeviceGetMinMaxClockOfPState(struct gpu *gpu, int type, int state, unsigned *low, unsigned *high) {
    int code = begin(gpu, CLOCK);
    if (code) return code;
    if ((type != 0 && type != 1) || state) return NOT_SUPPORTED; /* P0 alone */
    *low = gpu->min_clock_mhz;
    *high = gpu->max_clock_mhz;
    return SUCCESS;
}

struct rates { uint32_t gpu_pct, memory_pct; };

CALL(nvmlDeviceGetUtilizationRates, UTILISATION, (struct gpu *gpu, struct rates *rates),
     rates->gpu_pct = gpu->utilisation_pct; rates->memory_pct = 0)

struct memory { uint64_t total, free, used; };

CALL(nvmlDeviceGetMemoryInfo, MEMORY, (struct gpu *gpu, struct memory *memory),
     memory->total = gpu->memory_total; memory->used = gpu->memory_used; memory->free = memory->total - memory->used)

CALL(nvmlDeviceGetCurrentClocksEventReasons, THROTTLE, (struct gpu *gpu, unsigned long long *bits), *bits = gpu->throttle)
CALL(nvmlDeviceGetMigMode, MIG, (struct gpu *gpu, unsigned *now, unsigned *next), *now = *next = gpu->mig)
CALL(nvmlDeviceGetPowerManagementLimit, LIMIT, (struct gpu *gpu, unsigned *mw), *mw = gpu->limit_mw)
CALL(nvmlDeviceGetPowerManagementDefaultLimit, LIMIT, (struct gpu *gpu, unsigned *mw), *mw = gpu->default_mw)
CALL(nvmlDeviceGetEnforcedPowerLimit, LIMIT, (struct gpu *gpu, unsigned *mw), *mw = enforced(gpu))
CALL(nvmlDeviceGetPowerManagementLimitConstraints, LIMIT, (struct gpu *gpu, unsigned *low, unsigned *high),
     *low = gpu->lowest_mw; *high = gpu->highest_mw)

int nvmlDeviceSetPowerManagementLimit(struct gpu *gpu, unsigned mw) {
    int code = begin(gpu, SET_LIMIT);
    if (code) return code;
    if (mw < gpu->lowest_mw || mw > gpu->highest_mw) return INVALID_ARGUMENT;
    gpu->limit_mw = mw;
    return SUCCESS;
}

int nvmlDeviceSetGpuLockedClocks(struct gpu *gpu, unsigned low_mhz, unsigned high_mhz) {
    int code = begin(gpu, SET_CLOCK);
    if (code) return code;
    if (!high_mhz || low_mhz > high_mhz || high_mhz > gpu->max_clock_mhz) return INVALID_ARGUMENT;
    gpu->lock_low_mhz = low_mhz;
    gpu->lock_high_mhz = high_mhz;
    return SUCCESS;
}

CALL(nvmlDeviceResetGpuLockedClocks, SET_CLOCK, (struct gpu *gpu), gpu->lock_low_mhz = gpu->lock_high_mhz = 0)
