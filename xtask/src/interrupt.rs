//! SIGINT, SIGTERM and SIGHUP: ends the running processes, runs the registered teardowns, and exits.
//!
//! After the first signal, no new process is started, the running processes are ended, and a thread runs the registered teardowns, the newest
//! first. Further signals have no effect.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io;
use std::process::{Child, Command, exit};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// How long processes under way may take over SIGTERM: dpkg finishes the package at hand.
const GRACE: Duration = Duration::from_secs(10);

type Teardown = Box<dyn FnOnce() + Send>;

static GATE: RwLock<()> = RwLock::new(());
static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());
static TEARDOWNS: Mutex<Vec<(u64, Teardown)>> = Mutex::new(Vec::new());
static NEXT_ID: AtomicU64 = AtomicU64::new(0);
static SIGNAL_IS_THE_END: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Set on the thread that tears down, which alone may pass the shut gate.
    static MAY_PASS: Cell<bool> = const { Cell::new(false) };
}

/// Starts to listen for signals. Call once, first thing in `main`.
///
/// # Errors
/// When the handlers can't be registered.
pub fn listen() -> Result<()> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).context("failed to listen for signals")?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            stop(signal);
        }
    });
    Ok(())
}

/// A teardown that is on call; dropping it takes it off.
#[must_use = "the teardown is on call only as long as this lives"]
#[derive(Debug)]
pub struct Registration(u64);

impl Drop for Registration {
    fn drop(&mut self) {
        // Taken out of the list first: a teardown that is dropped may hold a registration itself.
        let gone: Vec<_> = {
            let mut teardowns = lock(&TEARDOWNS);
            teardowns.extract_if(.., |(id, _)| *id == self.0).collect()
        };
        drop(gone);
    }
}

/// Has `teardown` run when a signal ends this process.
pub fn on_signal(teardown: impl FnOnce() + Send + 'static) -> Registration {
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    lock(&TEARDOWNS).push((id, Box::new(teardown)));
    Registration(id)
}

/// Waits for the user's Ctrl-C, which then counts as success: teardowns run and the process exits with status 0.
pub fn wait_for_signal() -> ! {
    SIGNAL_IS_THE_END.store(true, Ordering::Relaxed);
    loop {
        thread::park();
    }
}

/// Goes on, unless this process is on its way out: then the calling thread stops here for good, and the teardown has the last word.
pub fn pass() -> Option<RwLockReadGuard<'static, ()>> {
    (!MAY_PASS.get()).then(|| GATE.read().unwrap_or_else(PoisonError::into_inner))
}

/// Starts a process; see [`pass`].
///
/// # Errors
/// When the program can't be started.
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    let _gate = pass();
    command.spawn()
}

/// Starts a process that a signal ends together with its children. It must lead a process group of its own.
pub(crate) fn spawn_tracked(command: &mut Command) -> io::Result<(Child, Tracked)> {
    let _gate = pass();
    let child = command.spawn()?;
    lock(&RUNNING).insert(child.id());
    let tracked = Tracked(child.id());
    Ok((child, tracked))
}

/// A process that a signal ends; drop it when the process was waited for.
pub(crate) struct Tracked(u32);

impl Drop for Tracked {
    fn drop(&mut self) {
        lock(&RUNNING).remove(&self.0);
    }
}

fn stop(signal: i32) -> ! {
    MAY_PASS.set(true);
    let _shut = GATE.write().unwrap_or_else(PoisonError::into_inner);
    eprintln!("\nstopping: cleaning up");
    end_running();
    let teardowns = std::mem::take(&mut *lock(&TEARDOWNS));
    for (_, teardown) in teardowns.into_iter().rev() {
        teardown();
    }
    exit(if SIGNAL_IS_THE_END.load(Ordering::Relaxed) {
        0
    } else {
        128 + signal
    });
}

fn end_running() {
    for (signal, patience) in [
        (Signal::SIGTERM, GRACE),
        (Signal::SIGKILL, Duration::from_secs(2)),
    ] {
        for id in lock(&RUNNING).iter() {
            // It may have ended by itself just now.
            let _ = killpg(Pid::from_raw(id.cast_signed()), signal);
        }
        let deadline = Instant::now() + patience;
        while !lock(&RUNNING).is_empty() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
