//! Laws of the fork-join pool.
#![allow(missing_docs, clippy::unwrap_used)]

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use tokenwire_kernels::ThreadPool;

fn pool(threads: usize) -> ThreadPool {
    ThreadPool::new(NonZero::new(threads).unwrap())
}

fn check_each_task_runs_once(pool: &ThreadPool, count: usize) {
    let calls: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
    pool.run(count, &|index| {
        calls[index].fetch_add(1, Ordering::Relaxed);
    });
    assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1));
}

#[test]
fn every_task_runs_once_in_every_call() {
    for threads in [1, 2, 3, 8] {
        let pool = pool(threads);
        assert_eq!(pool.threads(), threads);
        for round in 0..2000 {
            check_each_task_runs_once(&pool, round % 17);
        }
    }
}

#[test]
fn threads_that_parked_come_back() {
    let pool = pool(3);
    for _ in 0..20 {
        // Longer than a thread spins.
        thread::sleep(Duration::from_millis(2));
        check_each_task_runs_once(&pool, 50);
    }
}

#[test]
fn several_callers_and_nested_calls_share_a_pool() {
    let pool = pool(3);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for count in 0..300 {
                    check_each_task_runs_once(&pool, count % 9);
                    pool.run(3, &|_| check_each_task_runs_once(&pool, 4));
                }
            });
        }
    });
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
    let pool = pool(3);
    for bad in 0..40 {
        let done = AtomicUsize::new(0);
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(40, &|index| {
                assert!(index != bad, "task {bad}");
                done.fetch_add(1, Ordering::Relaxed);
            });
        }));
        let payload = result.unwrap_err();
        assert_eq!(payload.downcast_ref::<String>().unwrap(), &format!("task {bad}"));
        assert!(done.load(Ordering::Relaxed) < 40);
        check_each_task_runs_once(&pool, 40);
    }
}
