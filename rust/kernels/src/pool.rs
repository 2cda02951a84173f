//! A fork-join pool for steps of a few milliseconds made of many short parallel calls.
//!
//! Threads wait for the next call by spinning for a while and then park. Tasks are claimed one by one, and the caller
//! claims them too, so a call never waits for a thread that has not come yet: on a busy machine, or with threads still
//! parked, the caller does more of the work itself.

#![allow(unsafe_code)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a thread looks for the next call before it parks.
///
/// Between two products of a layer lie 20 to 100 us of other work. Waking a parked thread costs the caller about 5 us
/// and comes 20 to 60 us late.
const SPIN: Duration = Duration::from_micros(200);
/// Looks between two glances at the clock.
const LOOKS_PER_GLANCE: u32 = 64;

/// State: the call is open to threads that want to join.
const OPEN: u64 = 1;
/// State: one thread in the call.
const MEMBER: u64 = 1 << 1;
const MEMBERS: u64 = EPOCH - MEMBER;
/// State: number of the call.
const EPOCH: u64 = 1 << 16;
const MAX_THREADS: usize = 1 << 12;

type Task<'a> = &'a (dyn Fn(usize) + Sync);

struct Job {
    task: Task<'static>,
    count: usize,
}

struct Shared {
    /// [`OPEN`], members of the call, and its number. Whoever adds a [`MEMBER`] while it is open may read `job` until
    /// it takes it back.
    state: AtomicU64,
    /// Written by the caller only, while the state is closed and without members.
    job: UnsafeCell<Option<Job>>,
    next_task: AtomicUsize,
    parked: Vec<AtomicBool>,
    stopped: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is the only part that is not Sync by itself. It is written under the caller's lock while no thread may
// read it, as `state` says, and what it holds may be shared (the closure is Sync).
unsafe impl Sync for Shared {}

/// Threads that share the tasks of one call after another.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    caller: Mutex<()>,
}

impl fmt::Debug for ThreadPool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ThreadPool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

impl ThreadPool {
    /// A pool of `threads` threads, the caller's included; it works with fewer where the system refuses some.
    #[must_use]
    pub fn new(threads: NonZero<usize>) -> Self {
        let wanted = threads.get().min(MAX_THREADS) - 1;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next_task: AtomicUsize::new(0),
            parked: (0..wanted).map(|_| AtomicBool::new(false)).collect(),
            stopped: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let start = |index| {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("kernels".to_owned()).spawn(move || shared.work(index)).ok()
        };
        let workers = (0..wanted).map_while(start).collect();
        Self { shared, workers, caller: Mutex::new(()) }
    }

    /// Threads of one call, the caller's included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` once for each number below `count`, on any thread in any order, and returns when all are done.
    ///
    /// While another thread uses the pool, and for a call from within a task, the caller does all of it.
    ///
    /// # Panics
    /// When a task panics, with its payload.
    pub fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        let lock = match self.caller.try_lock() {
            Ok(lock) => Some(lock),
            Err(TryLockError::Poisoned(lock)) => Some(lock.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if count < 2 || self.workers.is_empty() || lock.is_none() {
            (0..count).for_each(task);
            return;
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. `Call` below closes the call and waits for its members before this
        // function returns or unwinds, and nobody reads the job without being a member.
        let task: Task<'static> = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        let job = Job { task, count };
        // SAFETY: this thread holds the lock, and the last call was closed and left by all members.
        unsafe { *shared.job.get() = Some(job) };
        shared.next_task.store(0, Ordering::Relaxed);
        let call = Call { shared };
        let epoch = (shared.state.load(Ordering::Relaxed) & !(OPEN | MEMBERS)).wrapping_add(EPOCH);
        // Sequentially consistent, as is the worker's side: either it sees the open call or its flag is seen here.
        shared.state.store(epoch | OPEN, Ordering::SeqCst);
        for (worker, parked) in self.workers.iter().zip(&shared.parked).take(count - 1) {
            if parked.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        shared.claim_tasks(task, count);
        drop(call);
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its tasks.
            let _ = worker.join();
        }
    }
}

/// An open call. Dropping it, also by unwinding, closes it and waits for its members.
struct Call<'a> {
    shared: &'a Shared,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        // Nobody joins any more, and who has joined finds no further task.
        self.shared.next_task.store(usize::MAX / 2, Ordering::Relaxed);
        let mut state = self.shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0;
        while state & MEMBERS != 0 {
            // A member that lost its core in the middle of a task: let it have this one.
            if looks < 10_000 {
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
            looks += 1;
            state = self.shared.state.load(Ordering::Acquire);
        }
    }
}

impl Shared {
    fn claim_tasks(&self, task: Task<'_>, count: usize) {
        loop {
            let index = self.next_task.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            task(index);
        }
    }

    /// The life of a worker.
    fn work(&self, index: usize) {
        let mut last_epoch = 0;
        while let Some(state) = self.wait_for_call(index, last_epoch) {
            // Joining must not change the state of a later call, so the whole word is compared, epoch included.
            if self.state.compare_exchange(state, state + MEMBER, Ordering::Acquire, Ordering::Relaxed).is_err() {
                continue;
            }
            last_epoch = state & !(OPEN | MEMBERS);
            // SAFETY: this thread is a member of an open call, so the caller keeps the job and what it borrows alive,
            // and does not write it, until the member is taken back below.
            if let Some(job) = unsafe { &*self.job.get() } {
                let result = catch_unwind(AssertUnwindSafe(|| self.claim_tasks(job.task, job.count)));
                if let Err(payload) = result {
                    *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
                }
            }
            self.state.fetch_sub(MEMBER, Ordering::Release);
        }
    }

    /// The state of an open call other than `last_epoch`; None when the pool ends.
    fn wait_for_call(&self, index: usize, last_epoch: u64) -> Option<u64> {
        let mut since = None;
        loop {
            for _ in 0..LOOKS_PER_GLANCE {
                let state = self.state.load(Ordering::SeqCst);
                if state & OPEN != 0 && state & !(OPEN | MEMBERS) != last_epoch {
                    return Some(state);
                }
                std::hint::spin_loop();
            }
            if self.stopped.load(Ordering::SeqCst) {
                return None;
            }
            if since.get_or_insert_with(Instant::now).elapsed() < SPIN {
                continue;
            }
            let parked = &self.parked[index];
            parked.store(true, Ordering::SeqCst);
            let state = self.state.load(Ordering::SeqCst);
            let is_called = state & OPEN != 0 && state & !(OPEN | MEMBERS) != last_epoch;
            if !is_called && !self.stopped.load(Ordering::SeqCst) {
                thread::park();
            }
            parked.store(false, Ordering::SeqCst);
            since = None;
        }
    }
}
