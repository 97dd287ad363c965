# Threads: how many share a call, and the loop over its chunks. Part of _kernels.pyx, and the only
# file with OpenMP.

cimport openmp
from cython.parallel cimport parallel, threadid

cdef extern from *:
    """
    #include <omp.h>
    #include <time.h>
    #if defined(__linux__)
    #include <sys/resource.h>
    #endif
    // The time that has passed, and the processor time of this thread if there is a fine clock of
    // that. (getrusage is none: Linux brings it up to date every few milliseconds.)
    struct XentropyClock { double passed, processor; bool fine; };
    static inline XentropyClock xentropy_clock(bool brief) {
      XentropyClock c = {omp_get_wtime(), 0, false};
    #if defined(CLOCK_THREAD_CPUTIME_ID) && !defined(_WIN32)
      struct timespec t;
      if (brief || clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) != 0) return c;
      c.processor = t.tv_sec + 1e-9 * t.tv_nsec;
      c.fine = t.tv_nsec % 1000000 != 0;  // some systems count ticks
    #endif
      return c;
    }
    // Has this thread waited for a disk since it was last asked?
    static inline bool xentropy_waited() {
    #if defined(__linux__)
      static thread_local long before = 0;
      struct rusage r;
      if (getrusage(RUSAGE_THREAD, &r) != 0 || r.ru_majflt == before) return false;
      before = r.ru_majflt;
      return true;
    #else
      return false;
    #endif
    }
    // How long the thread has worked since then, at most the time that has passed: the two clocks
    // differ by some microseconds. Waits for a disk count: they do not tell that others have the
    // cores.
    static inline double xentropy_worked(const XentropyClock* begun, bool brief) {
      const XentropyClock now = xentropy_clock(brief);
      const double passed = now.passed - begun->passed;
      if (!now.fine || !begun->fine) return passed;
      const double worked = now.processor - begun->processor;
      return worked > passed || (passed - worked > 5e-5 && xentropy_waited()) ? passed : worked;
    }
    static inline Py_ssize_t xentropy_fetch_add(Py_ssize_t* at, Py_ssize_t n) {
      return __atomic_fetch_add(at, n, __ATOMIC_RELAXED);
    }
    template <class T>
    static inline T xentropy_load(T* from) {
      T value;
      __atomic_load(from, &value, __ATOMIC_RELAXED);
      return value;
    }
    template <class T>
    static inline void xentropy_store(T* to, T value) {
      __atomic_store(to, &value, __ATOMIC_RELAXED);
    }
    """
    ctypedef struct Clock "XentropyClock":
        pass
    Clock clock "xentropy_clock"(bint brief) nogil
    double worked "xentropy_worked"(const Clock* begun, bint brief) nogil
    Py_ssize_t fetch_add "xentropy_fetch_add"(Py_ssize_t* at, Py_ssize_t n) nogil
    double load "xentropy_load"(double* source) nogil
    int load_int "xentropy_load"(int* source) nogil
    void store "xentropy_store"(double* target, double value) nogil
    void store_int "xentropy_store"(int* target, int value) nogil


cdef extern from "kernels/driver/modes.h" namespace "xentropy" nogil:
    uint64_t set_default_modes()
    void restore_modes(uint64_t before)
    double settled(double value)


# --- the default number ----------------------------------------------------------------

cdef int requested_threads = 0    # by set_num_threads; 0: OpenMP's default, ...
cdef int thread_limit = 1 << 30   # ... but at most this many
cdef bint after_fork = False      # this process is a child of a fork


def set_num_threads(int n):
    """Set the number of threads of calls without `n_threads`; 0 restores the default."""
    store_int(&requested_threads, n)


def limit_threads(int n):
    """Cap the default; an explicit number of threads may exceed it."""
    store_int(&thread_limit, n)


def get_num_threads():
    """Return the number of threads of calls without `n_threads`."""
    return default_threads()


cdef int default_threads() noexcept nogil:
    if after_fork:
        return 1
    return load_int(&requested_threads) or min(
        load_int(&thread_limit), openmp.omp_get_max_threads()
    )


def _in_child():
    # libgomp waits forever for its worker threads, which fork does not copy. Any library of the
    # process may have started them: all share one runtime.
    global after_fork
    after_fork = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)

# --- is a team worth it? ---------------------------------------------------------------

# Below about 64K elements (some 20 us) a second thread costs more than it saves.
cdef size_t PARALLEL_ELEMENTS = 1 << 16

# When other processes want the cores, a finished call may have to wait for a thread that was
# descheduled: 4 ms and more on Linux, whatever the size of the call. The time lost in this way,
# less the time saved, is kept as a debt, and all calls stay on one thread for as long: `n_threads`
# is an upper bound. It is an exponential backoff: the debt doubles if the next team is as late, up
# to AT_MOST times the delay, which bounds the loss to 1 % of the time. `python -m bench.contention`
# shows it.
cdef double LATE = 50e-6     # seconds; a shorter delay is not counted
cdef double AT_MOST = 100
# Processor time tells how long a thread has worked, even if it lost its core in between; the system
# takes 1 us to tell it. In a brief call, a cross entropy of fewer elements or the statistics of a
# row with fewer, each thread is done in SLICE even on old machines: one that takes longer has lost
# its core.
cdef size_t BRIEF_ELEMENTS = 1 << 18
cdef double SLICE = 2e-3     # seconds
# Shared by all calls; read and written atomically.
cdef double debt = 0          # seconds
cdef double serial_until = 0  # on the clock of omp_get_wtime


cdef void account(double saved) noexcept nogil:
    """Enter the seconds that a team has saved (negative: lost) into the debt."""
    cdef double owed = load(&debt)
    if saved < -LATE:
        owed = min(2 * owed - saved, AT_MOST * -saved)
        store(&serial_until, openmp.omp_get_wtime() + owed)
        store(&debt, owed)
    elif owed > 0:
        store(&debt, max(0.0, owed - saved))


def _account(double saved):
    """`account`, for the tests; returns whether calls are on one thread now."""
    account(saved)
    return in_debt()


def _forget_debt():
    """For the tests, which want the threads that they ask for."""
    store(&debt, 0)
    store(&serial_until, 0)


cdef inline bint in_debt() noexcept nogil:
    cdef double until = load(&serial_until)
    return until > 0 and openmp.omp_get_wtime() < until


cdef size_t team_for(size_t elements, int asked) noexcept nogil:
    """The most threads that may share the work on so many elements; `asked` is 0 for None."""
    if elements < PARALLEL_ELEMENTS or after_fork or in_debt():
        return 1
    return asked if asked > 0 else default_threads()


# --- chunks ----------------------------------------------------------------------------

cdef struct Plan:
    Py_ssize_t rows
    Py_ssize_t per_chunk
    Py_ssize_t chunks
    int team
    bint helps  # who has done its own share of the chunks takes from the others'
    bint brief  # see BRIEF_ELEMENTS


cdef Plan plan(size_t rows, size_t classes, size_t elements, int asked) noexcept nogil:
    """How a batch is cut into chunks, and how many threads share its elements."""
    cdef Plan p
    p.rows = rows
    p.per_chunk = chunk_rows(rows, classes)
    p.chunks = (rows + p.per_chunk - 1) // p.per_chunk
    p.team = <int>min(team_for(elements, asked), <size_t>p.chunks)
    p.helps = True
    p.brief = False
    return p


# Does chunk number `chunk` of a call; `scratch` is the executing thread's own.
ctypedef void (*Work)(const void* call, const Plan* p, Py_ssize_t chunk, void* results,
                      char* scratch) noexcept nogil


cdef inline size_t begin(const Plan* p, Py_ssize_t chunk) noexcept nogil:
    return chunk * p.per_chunk


cdef inline size_t end(const Plan* p, Py_ssize_t chunk) noexcept nogil:
    return min(p.rows, (chunk + 1) * p.per_chunk)


cdef enum:
    MOST_SHARES = 256


# State shared by the threads of a call. Each thread has a share of the chunks, which is contiguous
# in memory: what stays in a core's cache, or on pages near it, is found there by the next step and
# the next call.
cdef struct Job:
    Work work
    const void* call
    const Plan* p
    void* results
    char* scratch
    size_t each                 # bytes of scratch per thread
    int shares
    Py_ssize_t[MOST_SHARES] next  # the first chunk of each share that no thread has claimed
    Py_ssize_t busy_ns          # how long the threads have worked, together


cdef inline Py_ssize_t share_begin(const Job* job, int share) noexcept nogil:
    # Rounded up: the calling thread, which is the first to begin, has the larger share.
    return (job.p.chunks * share + job.shares - 1) // job.shares


cdef void deal(Job* job) noexcept nogil:
    """Give each thread its share."""
    cdef int share
    job.shares = min(job.p.team, <int>MOST_SHARES)
    for share in range(job.shares):
        job.next[share] = share_begin(job, share)


cdef Py_ssize_t claim(Job* job, int thread, int threads, int* past) noexcept nogil:
    """The next chunk for one of so many threads; -1: none is left. `past`: its shares are empty.

    Shares of threads that OpenMP has not started are done by the others.
    """
    cdef int share
    cdef Py_ssize_t chunk
    while past[0] < job.shares:
        share = (thread + past[0]) % job.shares
        chunk = fetch_add(&job.next[share], 1)
        if chunk < share_begin(job, share + 1):
            return chunk
        past[0] += 1 if job.p.helps else threads
    return -1


cdef void take_chunks(Job* job, int thread) noexcept nogil:
    """The loop of one thread: claim the next chunk until none is left."""
    cdef uint64_t modes = set_default_modes()
    cdef char* scratch = job.scratch + job.each * <size_t>thread
    cdef int past = 0, threads = openmp.omp_get_num_threads()
    cdef Clock begun = clock(job.p.brief)
    cdef double busy
    cdef Py_ssize_t chunk = claim(job, thread, threads, &past)
    while chunk >= 0:
        job.work(job.call, job.p, chunk, job.results, scratch)
        chunk = claim(job, thread, threads, &past)
    busy = worked(&begun, job.p.brief)
    if job.p.brief:
        busy = min(busy, SLICE)
    fetch_add(&job.busy_ns, <Py_ssize_t>(1e9 * busy))
    restore_modes(modes)


cdef void run_parallel(Job* job) noexcept nogil:
    """All chunks, by a team of the planned size; the calling thread is part of it."""
    cdef double begun = openmp.omp_get_wtime()
    job.busy_ns = 0
    deal(job)
    with parallel(num_threads=job.p.team):
        take_chunks(job, threadid())
    # One thread would have taken as long as all together.
    account(1e-9 * job.busy_ns - (openmp.omp_get_wtime() - begun))


cdef void run_serial(Job* job) noexcept nogil:
    """All chunks, by the calling thread. An OpenMP team of one would cost 0.2 us."""
    cdef Py_ssize_t chunk
    for chunk in range(job.p.chunks):
        job.work(job.call, job.p, chunk, job.results, job.scratch)


cdef void execute(Work work, const void* call, const Plan* p, void* results, char* scratch,
                  size_t each) noexcept nogil:
    """Do all chunks of the plan."""
    cdef Job job
    job.work, job.call, job.p, job.results = work, call, p, results
    job.scratch, job.each = scratch, each
    if p.team > 1:
        run_parallel(&job)
    else:
        run_serial(&job)


def _worked(double seconds):
    """For the tests: (passed, worked) of a thread that does nothing else for so long."""
    cdef double start = openmp.omp_get_wtime()
    cdef Clock begun = clock(False)
    while openmp.omp_get_wtime() - start < seconds:
        pass
    cdef double spent = worked(&begun, False)
    return openmp.omp_get_wtime() - start, spent


def _claimed(size_t rows, size_t classes, int team, int started, bint helps, list order):
    """For the tests: the rows (begin, end) that these threads, so many of a team, claim in turn."""
    cdef Plan p = plan(rows, classes, rows * classes, team)
    cdef Job job
    cdef int thread, past
    p.team, p.helps, job.p = team, helps, &p
    deal(&job)
    found, empty = [], {}  # of each thread: how many shares it has found empty
    for thread in order:
        past = empty.get(thread, 0)
        chunk = claim(&job, thread, started, &past)
        empty[thread] = past
        found.append((begin(&p, chunk), end(&p, chunk)) if chunk >= 0 else None)
    return found
