/* A stand-in for the GPU driver's management library, libnvidia-ml.so.1.
 *
 * It answers the calls of NVML from a file that the simulator maps and writes (SWINGBUS_SIM_SHELF names it), in NVML's own
 * units and with NVML's own return codes, so that a program which reads real GPUs reads simulated ones unchanged.
 * The file's layout is described twice, here and in layout.py; swingbus_shelf_layout() lets a test compare the two.
 *
 * A lost GPU answers NVML_ERROR_GPU_IS_LOST, a hung one never answers, a function that is not here cannot be found by name.
 * The only thing written is a GPU's requested power limit (one 64-bit word, sequence and milliwatts) and nothing is
 * remembered outside the file except event sets.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef int nvmlReturn_t;
typedef void *nvmlDevice_t;
typedef void *nvmlEventSet_t;

enum {
    OK = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NO_PERMISSION = 4,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    TIMEOUT = 10,
    GPU_IS_LOST = 15,
    VERSION_MISMATCH = 25,
    UNKNOWN = 999
};

/* ---- the shelf: one file per host ------------------------------------------------------------------------------- */

#define MAX_GPUS 16
#define PROCESS_SLOTS 64
#define LAYOUT_VERSION 1

enum { HEALTH_OK = 0, HEALTH_LOST = 1, HEALTH_HUNG = 2, HEALTH_HUNG_AT_OPEN = 3 };

struct reading { /* what the physics says; NVML's units */
    uint64_t energy_mj;
    uint64_t memory_used_bytes;
    uint64_t memory_total_bytes;
    uint64_t throttle_reasons;
    uint64_t throttle_ns[5]; /* software power, sync boost, software heat, hardware heat, power brake */
    uint64_t ecc_corrected;
    uint64_t ecc_uncorrected;
    uint64_t remapped_rows;
    uint64_t pcie_replays;
    uint64_t nvlink_errors;
    uint64_t xid_sequence; /* counts the XID errors so far */
    uint32_t xid;          /* the newest one */
    uint32_t health;
    uint32_t power_average_mw;
    uint32_t power_instant_mw;
    uint32_t enforced_limit_mw;
    uint32_t requested_limit_mw;
    uint32_t default_limit_mw;
    uint32_t min_limit_mw;
    uint32_t max_limit_mw;
    int32_t temperature_c;
    int32_t memory_temperature_c;
    uint32_t has_memory_temperature;
    uint32_t sm_clock_mhz;
    uint32_t memory_clock_mhz;
    uint32_t utilisation_percent;
    uint32_t recovery_action;
};

struct copy { /* of two: the writer fills the one not in use, then moves `sequence` on */
    struct reading reading;
    uint32_t crc32;
    uint32_t sequence_low;
};

struct gpu {
    char uuid[64];
    char name[64];
    char bus_id[32];
    char serial[32];
    char vbios[32];
    uint64_t sequence; /* the copy in use is copies[sequence & 1] */
    uint64_t request;  /* sequence << 32 | milliwatts; milliwatts 0: nobody asked since the driver was loaded */
    struct copy copies[2];
};

struct process {
    uint64_t start_ticks; /* field 22 of /proc/PID/stat: tells a living process from a reused number */
    uint64_t gpu_mask;
    uint64_t memory_bytes; /* on each of its GPUs */
    double load_ratio;
    uint32_t pid; /* 0: free */
    uint32_t kind;
};

struct shelf {
    char magic[8];
    uint32_t layout_version;
    uint32_t gpu_count;
    uint32_t unsupported_count;
    uint32_t reserved;
    char driver_version[40];
    uint32_t unsupported_fields[16];
    struct process processes[PROCESS_SLOTS];
    struct gpu gpus[MAX_GPUS];
};

_Static_assert(sizeof(struct reading) == 184, "layout.py says 184");
_Static_assert(sizeof(struct copy) == 192, "layout.py says 192");
_Static_assert(sizeof(struct gpu) == 624, "layout.py says 624");
_Static_assert(sizeof(struct process) == 40, "layout.py says 40");
_Static_assert(offsetof(struct shelf, processes) == 128, "layout.py says 128");

static struct shelf *shelf;
static int shelf_file = -1; /* kept open to ask who locks a slot */
static int handles[MAX_GPUS]; /* only their addresses matter */

unsigned swingbus_shelf_layout(int which) {
    switch (which) {
    case 0: return sizeof(struct shelf);
    case 1: return offsetof(struct shelf, processes);
    case 2: return sizeof(struct process);
    case 3: return offsetof(struct shelf, gpus);
    case 4: return sizeof(struct gpu);
    case 5: return offsetof(struct gpu, sequence);
    case 6: return offsetof(struct gpu, request);
    case 7: return offsetof(struct gpu, copies);
    case 8: return sizeof(struct copy);
    case 9: return sizeof(struct reading);
    default: return 0;
    }
}

static uint32_t crc32_of(const unsigned char *bytes, size_t count) { /* the CRC of zlib, small and slow is enough */
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < count; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1u)));
    }
    return ~crc;
}

static void pause_ns(long ns) {
    struct timespec wait = {ns / 1000000000L, ns % 1000000000L};
    nanosleep(&wait, NULL);
}

static void hang_for_ever(void) {
    for (;;) pause();
}

static int gpu_index(nvmlDevice_t device) {
    int *handle = device;
    if (shelf == NULL || handle < handles || handle >= handles + shelf->gpu_count) return -1;
    return (int)(handle - handles);
}

/* Copy one consistent reading. The writer never touches the copy in use, so a writer that stops half way harms nobody. */
static nvmlReturn_t take(nvmlDevice_t device, struct reading *out) {
    if (shelf == NULL) return UNINITIALIZED;
    int index = gpu_index(device);
    if (index < 0) return INVALID_ARGUMENT;
    struct gpu *gpu = &shelf->gpus[index];
    for (int attempt = 0; attempt < 200; attempt++) {
        uint64_t before = __atomic_load_n(&gpu->sequence, __ATOMIC_ACQUIRE);
        struct copy copy;
        memcpy(&copy, &gpu->copies[before & 1], sizeof copy);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (copy.sequence_low == (uint32_t)before &&
            copy.crc32 == crc32_of((const unsigned char *)&copy.reading, sizeof copy.reading)) {
            *out = copy.reading;
            if (out->health == HEALTH_LOST) return GPU_IS_LOST;
            if (out->health >= HEALTH_HUNG) hang_for_ever();
            return OK;
        }
        pause_ns(50000);
    }
    return UNKNOWN;
}

#define TAKE(device)                            \
    struct reading r;                           \
    nvmlReturn_t taken = take((device), &r);    \
    if (taken != OK) return taken

/* ---- set up -------------------------------------------------------------------------------------------------------- */

nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (shelf != NULL) return OK;
    const char *path = getenv("SWINGBUS_SIM_SHELF");
    if (path == NULL) return DRIVER_NOT_LOADED;
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return errno == EACCES ? NO_PERMISSION : DRIVER_NOT_LOADED;
    struct stat status;
    void *map = MAP_FAILED;
    if (fstat(file, &status) == 0 && (size_t)status.st_size >= sizeof(struct shelf))
        map = mmap(NULL, sizeof(struct shelf), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (map == MAP_FAILED) {
        close(file);
        return DRIVER_NOT_LOADED;
    }
    struct shelf *found = map;
    if (memcmp(found->magic, "SWBSHELF", 8) != 0 || found->layout_version != LAYOUT_VERSION ||
        found->gpu_count > MAX_GPUS) {
        munmap(map, sizeof(struct shelf));
        close(file);
        return VERSION_MISMATCH;
    }
    shelf = found;
    shelf_file = file;
    return OK;
}

nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

nvmlReturn_t nvmlShutdown(void) {
    if (shelf == NULL) return UNINITIALIZED;
    munmap(shelf, sizeof(struct shelf));
    close(shelf_file);
    shelf = NULL;
    return OK;
}

const char *nvmlErrorString(nvmlReturn_t code) {
    switch (code) {
    case OK: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case TIMEOUT: return "Timeout";
    case GPU_IS_LOST: return "GPU is lost";
    case VERSION_MISMATCH: return "Version Mismatch";
    default: return "Unknown Error";
    }
}

static nvmlReturn_t put_text(const char *text, char *out, unsigned size) {
    size_t length = strlen(text); /* every text of the shelf ends with a zero: layout.py sees to it */
    if (out == NULL) return INVALID_ARGUMENT;
    if (length + 1 > size) return INSUFFICIENT_SIZE;
    memcpy(out, text, length);
    out[length] = 0;
    return OK;
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned size) {
    if (shelf == NULL) return UNINITIALIZED;
    return put_text(shelf->driver_version, out, size);
}

nvmlReturn_t nvmlSystemGetNVMLVersion(char *out, unsigned size) { return put_text("13.580.95.05", out, size); }

/* ---- which GPUs there are: known without touching the device ------------------------------------------------------ */

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
    if (shelf == NULL) return UNINITIALIZED;
    *count = shelf->gpu_count;
    return OK;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
    if (shelf == NULL) return UNINITIALIZED;
    if (index >= shelf->gpu_count) return INVALID_ARGUMENT;
    struct gpu *gpu = &shelf->gpus[index];
    uint64_t sequence = __atomic_load_n(&gpu->sequence, __ATOMIC_ACQUIRE);
    if (gpu->copies[sequence & 1].reading.health == HEALTH_HUNG_AT_OPEN) hang_for_ever();
    *device = &handles[index];
    return OK;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    if (shelf == NULL) return UNINITIALIZED;
    for (unsigned i = 0; i < shelf->gpu_count; i++)
        if (strncmp(shelf->gpus[i].uuid, uuid, sizeof shelf->gpus[i].uuid) == 0)
            return nvmlDeviceGetHandleByIndex_v2(i, device);
    return NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device) {
    if (shelf == NULL) return UNINITIALIZED;
    for (unsigned i = 0; i < shelf->gpu_count; i++)
        if (strncasecmp(shelf->gpus[i].bus_id, bus_id, sizeof shelf->gpus[i].bus_id) == 0)
            return nvmlDeviceGetHandleByIndex_v2(i, device);
    return NOT_FOUND;
}

#define KNOWN(device)                                              \
    if (shelf == NULL) return UNINITIALIZED;                       \
    if (gpu_index(device) < 0) return INVALID_ARGUMENT;            \
    struct gpu *gpu = &shelf->gpus[gpu_index(device)]

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *index) {
    KNOWN(device);
    *index = (unsigned)(gpu - shelf->gpus);
    return OK;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *out, unsigned size) {
    KNOWN(device);
    return put_text(gpu->name, out, size);
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *out, unsigned size) {
    KNOWN(device);
    return put_text(gpu->uuid, out, size);
}

nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *out, unsigned size) {
    KNOWN(device);
    return gpu->serial[0] == 0 ? NOT_SUPPORTED : put_text(gpu->serial, out, size);
}

nvmlReturn_t nvmlDeviceGetVbiosVersion(nvmlDevice_t device, char *out, unsigned size) {
    KNOWN(device);
    return gpu->vbios[0] == 0 ? NOT_SUPPORTED : put_text(gpu->vbios, out, size);
}

struct pci {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
};

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, struct pci *pci) {
    KNOWN(device);
    memset(pci, 0, sizeof *pci);
    unsigned function = 0;
    if (sscanf(gpu->bus_id, "%x:%x:%x.%x", &pci->domain, &pci->bus, &pci->device, &function) != 4) return UNKNOWN;
    snprintf(pci->bus_id_legacy, sizeof pci->bus_id_legacy, "%04x:%02x:%02x.%x", pci->domain & 0xffffu, pci->bus & 0xffu,
             pci->device & 0xffu, function & 0xfu);
    snprintf(pci->bus_id, sizeof pci->bus_id, "%s", gpu->bus_id);
    pci->pci_device_id = 0x233010deu;
    return OK;
}

nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device, unsigned *mode) {
    KNOWN(device);
    (void)gpu;
    *mode = 1;
    return OK;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending) {
    KNOWN(device);
    (void)gpu;
    *current = *pending = 0;
    return OK;
}

/* ---- readings ------------------------------------------------------------------------------------------------------- */

#define READ_UNSIGNED(function, type, value)               \
    nvmlReturn_t function(nvmlDevice_t device, type *out) { \
        TAKE(device);                                       \
        *out = (type)(value);                               \
        return OK;                                          \
    }

READ_UNSIGNED(nvmlDeviceGetPowerUsage, unsigned, r.power_average_mw)
READ_UNSIGNED(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, r.energy_mj)
READ_UNSIGNED(nvmlDeviceGetEnforcedPowerLimit, unsigned, r.enforced_limit_mw)
READ_UNSIGNED(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, r.default_limit_mw)
READ_UNSIGNED(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, r.throttle_reasons)
READ_UNSIGNED(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, r.throttle_reasons)
READ_UNSIGNED(nvmlDeviceGetPcieReplayCounter, unsigned, r.pcie_replays)

static uint32_t asked_mw(nvmlDevice_t device) {
    return (uint32_t)__atomic_load_n(&shelf->gpus[gpu_index(device)].request, __ATOMIC_ACQUIRE);
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned *limit_mw) {
    TAKE(device);
    uint32_t asked = asked_mw(device);
    *limit_mw = asked != 0 ? asked : r.requested_limit_mw;
    return OK;
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned *least, unsigned *most) {
    TAKE(device);
    *least = r.min_limit_mw;
    *most = r.max_limit_mw;
    return OK;
}

nvmlReturn_t nvmlDeviceSetPowerManagementLimit(nvmlDevice_t device, unsigned limit_mw) {
    TAKE(device);
    if (getenv("SWINGBUS_SIM_NVML_READ_ONLY") != NULL) return NO_PERMISSION;
    /* As a real driver does; elsewhere whoever runs the simulator may set limits, for most do without root. */
    if (getenv("SWINGBUS_SIM_NVML_ROOT_ONLY") != NULL && geteuid() != 0) return NO_PERMISSION;
    if (limit_mw < r.min_limit_mw || limit_mw > r.max_limit_mw) return INVALID_ARGUMENT;
    uint64_t *word = &shelf->gpus[gpu_index(device)].request;
    uint64_t old = __atomic_load_n(word, __ATOMIC_ACQUIRE);
    uint64_t new;
    do {
        new = (((old >> 32) + 1) << 32) | limit_mw;
    } while (!__atomic_compare_exchange_n(word, &old, new, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    return OK;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned sensor, unsigned *out) {
    TAKE(device);
    if (sensor != 0) return INVALID_ARGUMENT;
    *out = (unsigned)r.temperature_c;
    return OK;
}

struct temperature {
    unsigned version, sensor;
    int temperature;
};

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, struct temperature *out) {
    TAKE(device);
    if (out->version != 0x100000cu) return VERSION_MISMATCH;
    if (out->sensor != 0) return INVALID_ARGUMENT;
    out->temperature = r.temperature_c;
    return OK;
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, unsigned domain, unsigned *mhz) {
    TAKE(device);
    if (domain > 3) return INVALID_ARGUMENT;
    *mhz = domain == 2 ? r.memory_clock_mhz : r.sm_clock_mhz;
    return OK;
}

struct utilisation {
    unsigned gpu, memory;
};

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, struct utilisation *out) {
    TAKE(device);
    out->gpu = r.utilisation_percent;
    out->memory = r.utilisation_percent / 2;
    return OK;
}

struct memory {
    unsigned long long total, free, used;
};

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, struct memory *out) {
    TAKE(device);
    out->total = r.memory_total_bytes;
    out->used = r.memory_used_bytes;
    out->free = r.memory_total_bytes - r.memory_used_bytes;
    return OK;
}

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, unsigned type, unsigned counter, unsigned long long *out) {
    TAKE(device);
    if (type > 1 || counter > 1) return INVALID_ARGUMENT;
    *out = type == 0 ? r.ecc_corrected : r.ecc_uncorrected;
    return OK;
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                                       unsigned *failure) {
    TAKE(device);
    *corrected = (unsigned)r.remapped_rows;
    *uncorrected = *pending = *failure = 0;
    return OK;
}

nvmlReturn_t nvmlDeviceGetCurrPcieLinkGeneration(nvmlDevice_t device, unsigned *out) {
    TAKE(device);
    (void)r;
    *out = 5;
    return OK;
}

nvmlReturn_t nvmlDeviceGetCurrPcieLinkWidth(nvmlDevice_t device, unsigned *out) {
    TAKE(device);
    (void)r;
    *out = 16;
    return OK;
}

struct field_value {
    uint32_t field, scope;
    int64_t timestamp_us, latency_us;
    uint32_t value_type;
    int32_t result;
    union {
        double dVal;
        unsigned uiVal;
        unsigned long long ullVal;
    } value;
};

enum { TYPE_UNSIGNED_INT = 1, TYPE_UNSIGNED_LONG_LONG = 3 };

static int is_unsupported(uint32_t field) {
    for (uint32_t i = 0; i < shelf->unsupported_count && i < 16; i++)
        if (shelf->unsupported_fields[i] == field) return 1;
    return 0;
}

static void fill_field(nvmlDevice_t device, const struct reading *r, struct field_value *f) {
    uint64_t wide = 0;
    int is_wide = 0;
    f->result = OK;
    if (is_unsupported(f->field)) {
        f->result = NOT_SUPPORTED;
        return;
    }
    switch (f->field) {
    case 1: wide = 1; break;                             /* ECC is on */
    case 3: case 5: wide = r->ecc_corrected, is_wide = 1; break;
    case 4: case 6: wide = r->ecc_uncorrected, is_wide = 1; break;
    case 38: wide = r->nvlink_errors, is_wide = 1; break;
    case 45: case 52: case 59: is_wide = 1; break; /* the physics knows one kind of NVLink error */
    case 74: wide = r->throttle_ns[0], is_wide = 1; break;
    case 76: wide = r->throttle_ns[1], is_wide = 1; break;
    case 82:
        if (r->has_memory_temperature == 0) f->result = NOT_SUPPORTED;
        wide = (uint64_t)r->memory_temperature_c;
        break;
    case 83: wide = r->energy_mj, is_wide = 1; break;
    case 94: wide = r->pcie_replays; break;
    case 142: wide = r->remapped_rows; break;
    case 143: case 144: case 145: wide = 0; break;
    case 185: wide = r->power_average_mw; break;
    case 186: wide = r->power_instant_mw; break;
    case 187: wide = r->min_limit_mw; break;
    case 188: wide = r->max_limit_mw; break;
    case 189: wide = r->default_limit_mw; break;
    case 190: wide = r->enforced_limit_mw; break;
    case 192: wide = asked_mw(device) != 0 ? asked_mw(device) : r->requested_limit_mw; break;
    case 230: wide = r->recovery_action; break;
    case 269: wide = r->throttle_ns[2], is_wide = 1; break;
    case 270: wide = r->throttle_ns[3], is_wide = 1; break;
    case 271: wide = r->throttle_ns[4], is_wide = 1; break;
    default: f->result = NOT_SUPPORTED;
    }
    if (f->result == OK && f->scope != 0 && (f->field == 185 || f->field == 186)) f->result = NOT_SUPPORTED; /* whole GPU only */
    if (f->result != OK) return;
    f->value_type = is_wide ? TYPE_UNSIGNED_LONG_LONG : TYPE_UNSIGNED_INT;
    if (is_wide) f->value.ullVal = wide;
    else f->value.uiVal = (unsigned)wide;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, struct field_value *values) {
    TAKE(device);
    if (count <= 0 || values == NULL) return INVALID_ARGUMENT;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    for (int i = 0; i < count; i++) {
        values[i].timestamp_us = now.tv_sec * 1000000LL + now.tv_nsec / 1000;
        values[i].latency_us = 1;
        fill_field(device, &r, &values[i]);
    }
    return OK;
}

/* ---- processes ------------------------------------------------------------------------------------------------------ */

struct process_info {
    unsigned pid;
    unsigned long long memory_bytes;
    unsigned gpu_instance, compute_instance;
};

/* A dead process has no context on a GPU, even while its parent has not reaped it. */
static int is_alive(const struct process *process) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%u/stat", process->pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    if (length <= 0) return 0;
    text[length] = 0;
    char *rest = strrchr(text, ')');
    char state = 0;
    unsigned long long start = 0;
    if (rest == NULL ||
        sscanf(rest + 2, "%c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &state, &start) != 2)
        return 0;
    return state != 'Z' && state != 'X' && start == process->start_ticks;
}

/* Return the number of the process that holds a slot, as its reader may use it; 0 if it is dead. See processes.py. */
static unsigned living_pid(const struct process *process, int slot) {
    if (is_alive(process)) return process->pid;
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    lock.l_start = (off_t)(offsetof(struct shelf, processes) + (size_t)slot * sizeof *process);
    lock.l_len = sizeof *process;
    if (fcntl(shelf_file, F_GETLK, &lock) != 0 || lock.l_type == F_UNLCK) return 0;
    return lock.l_pid > 0 ? (unsigned)lock.l_pid : process->pid;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count, struct process_info *out) {
    TAKE(device);
    (void)r;
    uint64_t bit = 1ull << gpu_index(device);
    unsigned room = *count, found = 0;
    for (int i = 0; i < PROCESS_SLOTS; i++) {
        struct process process = shelf->processes[i];
        unsigned pid = process.pid == 0 || (process.gpu_mask & bit) == 0 ? 0 : living_pid(&process, i);
        if (pid == 0) continue;
        if (found < room && out != NULL) {
            out[found].pid = pid;
            out[found].memory_bytes = process.memory_bytes;
            out[found].gpu_instance = out[found].compute_instance = 0xffffffffu;
        }
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : OK;
}

/* ---- events --------------------------------------------------------------------------------------------------------- */

#define XID_EVENT 8ull

struct event_set {
    uint64_t registered;
    uint64_t seen[MAX_GPUS];
};

struct event {
    nvmlDevice_t device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
};

static int xid_of(int index, uint64_t *sequence, uint32_t *xid) { /* never hangs: the queue is the driver's, not the GPU's */
    struct gpu *gpu = &shelf->gpus[index];
    for (int attempt = 0; attempt < 200; attempt++) {
        uint64_t before = __atomic_load_n(&gpu->sequence, __ATOMIC_ACQUIRE);
        struct copy copy;
        memcpy(&copy, &gpu->copies[before & 1], sizeof copy);
        if (copy.sequence_low == (uint32_t)before &&
            copy.crc32 == crc32_of((const unsigned char *)&copy.reading, sizeof copy.reading)) {
            *sequence = copy.reading.xid_sequence;
            *xid = copy.reading.xid;
            return 1;
        }
        pause_ns(50000);
    }
    return 0;
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) {
    if (shelf == NULL) return UNINITIALIZED;
    *set = calloc(1, sizeof(struct event_set));
    return *set == NULL ? UNKNOWN : OK;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
    free(set);
    return OK;
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types) {
    KNOWN(device);
    (void)gpu;
    *types = XID_EVENT;
    return OK;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t handle) {
    KNOWN(device);
    struct event_set *set = handle;
    int index = (int)(gpu - shelf->gpus);
    uint32_t xid;
    if (types & ~XID_EVENT) return NOT_SUPPORTED;
    if (!xid_of(index, &set->seen[index], &xid)) return UNKNOWN;
    set->registered |= 1ull << index;
    return OK;
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t handle, struct event *out, unsigned timeout_ms) {
    if (shelf == NULL) return UNINITIALIZED;
    struct event_set *set = handle;
    for (unsigned waited_ms = 0;; waited_ms += 5) {
        for (unsigned i = 0; i < shelf->gpu_count; i++) {
            uint64_t sequence;
            uint32_t xid;
            if ((set->registered & (1ull << i)) == 0 || !xid_of((int)i, &sequence, &xid)) continue;
            if (sequence == set->seen[i]) continue;
            set->seen[i] = sequence;
            memset(out, 0, sizeof *out);
            out->device = &handles[i];
            out->type = XID_EVENT;
            out->data = xid;
            out->gpu_instance = out->compute_instance = 0xffffffffu;
            return OK;
        }
        if (waited_ms >= timeout_ms) return TIMEOUT;
        pause_ns(5000000L);
    }
}
