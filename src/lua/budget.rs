//! Stops a script that has used up its time, without a cost for those that do not.
//!
//! Lua can be asked to call a function after each instruction, and then every instruction costs more than twice as much.
//! So nobody asks while all is well. A worker notes when it enters a VM and when it leaves; a [`Watchdog`] on a thread of
//! its own looks every few milliseconds, and when a worker has spent the budget of a call in one VM, sends it a signal.
//! The handler asks Lua for that function, which is one of the few things that may be done to a running VM in a signal
//! handler (`ldebug.c`, `lua_sethook`). The function leaves a coroutine for good; where it cannot, it raises an error, again
//! at every instruction, so that no `pcall` of the script survives it.
//!
//! What is counted is the CPU time of the worker's thread: a machine that is busy elsewhere costs a script nothing.
//! Functions written in C or Rust are not interrupted; those that may take long are replaced (`prelude.lua`) or look at
//! [`Budget::is_spent`].
#![allow(unsafe_code)] // a signal handler, C functions with Lua's calling convention, and clocks of other threads

use std::cell::Cell;
use std::ffi::c_int;
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering, compiler_fence};
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use mlua::ffi::{self, lua_State};
use mlua::{Function, Lua};

/// Looks after the budgets of all VMs of one program.
#[derive(Debug)]
pub(crate) struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// The budget of one VM. It belongs to the thread that made it.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    slot: Arc<Slot>,
    shared: Arc<Shared>,
    /// A VM never leaves its thread.
    _not_send: std::marker::PhantomData<Rc<()>>,
}

/// A script is running as long as this lives.
pub(crate) struct Entered<'a> {
    budget: &'a Budget,
    outer_slot: *const Slot,
    /// The state that ran before, when this is a call from within a call.
    outer_state: Option<*mut lua_State>,
}

#[derive(Debug)]
struct Shared {
    slots: Mutex<Vec<Weak<Slot>>>,
    /// Nobody has entered a VM for a while, and the watchdog sleeps until somebody does.
    is_asleep: AtomicBool,
    is_over: AtomicBool,
    waker: Mutex<Option<std::thread::Thread>>,
}

/// What a worker and the watchdog know of one VM.
#[derive(Debug)]
struct Slot {
    /// Counts entries and exits: odd while a script runs.
    turn: AtomicU64,
    /// The coroutine that runs.
    state: AtomicPtr<lua_State>,
    /// The turn that has used up its budget.
    doomed: AtomicU64,
    /// The handler has seen that, so the script ends at its next instruction.
    is_spent: AtomicBool,
    /// What this turn may take, in nanoseconds of CPU time.
    limit: AtomicU64,
    /// The kernel's id of the worker's thread, and the clock of its CPU time.
    thread: libc::pid_t,
    clock: libc::clockid_t,
}

thread_local! {
    /// The slot of the VM that runs on this thread. Constant at first and without a destructor, so that a signal handler
    /// may look at it.
    static RUNNING: Cell<*const Slot> = const { Cell::new(ptr::null()) };
}

/// A signal that does nothing when nobody handles it, and that nothing else sends here.
const SIGNAL: c_int = libc::SIGURG;

/// How often the watchdog looks. A call may have begun this long before it was seen, so it is stopped this much early.
const TICK: Duration = Duration::from_millis(4);

/// Looks of the watchdog without a script before it goes to sleep.
const LOOKS_BEFORE_SLEEP: u32 = 200;

/// The error of a script that has used up its time.
pub(super) const SPENT: &str = "the script has used up its time";

impl Watchdog {
    /// Begins to look.
    pub(crate) fn new() -> Watchdog {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| {
            // SAFETY: the action is whole, and the handler only does what a handler may do.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = arm as *const () as usize;
                action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
                libc::sigaction(SIGNAL, &raw const action, ptr::null_mut());
            }
        });
        let shared = Arc::new(Shared {
            slots: Mutex::default(),
            is_asleep: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            waker: Mutex::default(),
        });
        let at_work = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("watchdog".into()).spawn(move || at_work.watch());
        Watchdog { shared, thread: thread.ok() }
    }

    /// A budget for a VM of this thread.
    pub(crate) fn budget(&self) -> Budget {
        let mut clock = 0;
        // SAFETY: the thread is this one, and `clock` is written to.
        let thread = unsafe {
            libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock);
            libc::gettid()
        };
        let slot = Arc::new(Slot {
            turn: AtomicU64::new(0),
            state: AtomicPtr::new(ptr::null_mut()),
            doomed: AtomicU64::new(0),
            is_spent: AtomicBool::new(false),
            limit: AtomicU64::new(0),
            thread,
            clock,
        });
        let mut slots = self.shared.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|it| it.strong_count() > 0);
        slots.push(Arc::downgrade(&slot));
        Budget { slot, shared: Arc::clone(&self.shared), _not_send: std::marker::PhantomData }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            drop(thread.join()); // it does not panic
        }
    }
}

impl Shared {
    fn watch(&self) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
        // Of each slot by its address: the turn that was seen first, and the CPU time then.
        let mut seen: Vec<(*const Slot, u64, Duration)> = Vec::new();
        let mut n_idle = 0;
        while !self.is_over.load(Ordering::SeqCst) {
            let slots: Vec<Arc<Slot>> = {
                let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
                slots.iter().filter_map(Weak::upgrade).collect()
            };
            let mut is_busy = false;
            seen.retain(|(at, ..)| slots.iter().any(|it| Arc::as_ptr(it) == *at));
            for slot in &slots {
                let turn = slot.turn.load(Ordering::Acquire);
                if turn % 2 == 0 {
                    continue;
                }
                is_busy = true;
                let at = Arc::as_ptr(slot);
                let cpu = slot.cpu();
                match seen.iter_mut().find(|it| it.0 == at) {
                    Some((_, at_turn, since)) if *at_turn == turn => {
                        let limit = Duration::from_nanos(slot.limit.load(Ordering::Relaxed));
                        if cpu.saturating_sub(*since) + TICK >= limit {
                            slot.stop(turn);
                        }
                    }
                    Some(it) => *it = (at, turn, cpu),
                    None => seen.push((at, turn, cpu)),
                }
            }
            n_idle = if is_busy { 0 } else { n_idle + 1 };
            if n_idle < LOOKS_BEFORE_SLEEP {
                std::thread::park_timeout(TICK);
                continue;
            }
            drop(slots);
            self.is_asleep.store(true, Ordering::SeqCst);
            let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            let entered = |it: &Arc<Slot>| it.turn.load(Ordering::SeqCst) % 2 == 1;
            let somebody = slots.iter().filter_map(Weak::upgrade).any(|it| entered(&it));
            drop(slots);
            if !somebody && !self.is_over.load(Ordering::SeqCst) {
                std::thread::park();
            }
            self.is_asleep.store(false, Ordering::SeqCst);
            n_idle = 0;
        }
    }

    #[cold]
    fn wake(&self) {
        if let Some(thread) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.unpark();
        }
    }
}

impl Slot {
    /// The CPU time of the worker's thread; zero when it has ended.
    fn cpu(&self) -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: a clock of a thread that has ended is refused, and `time` is written to.
        unsafe { libc::clock_gettime(self.clock, &raw mut time) };
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
    }

    /// Has the worker stop what it runs in this turn.
    fn stop(&self, turn: u64) {
        self.doomed.store(turn, Ordering::SeqCst);
        // SAFETY: the signal goes to a thread of this process, or to nobody. A thread that has left the turn, or has the
        // number of one that has ended, finds nothing to do.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.thread, SIGNAL) };
    }
}

impl Budget {
    /// Notes that a script begins or goes on, in this coroutine, and may take `limit` of CPU time. From within a call the
    /// outer one goes on afterwards, and both have the budget of the outer.
    pub(crate) fn enter(&self, state: *mut lua_State, limit: Duration) -> Entered<'_> {
        let slot = &*self.slot;
        let outer_slot = RUNNING.replace(slot);
        let before = slot.state.swap(state, Ordering::Relaxed);
        let turn = slot.turn.load(Ordering::Relaxed);
        if turn % 2 == 1 {
            return Entered { budget: self, outer_slot, outer_state: Some(before) };
        }
        slot.is_spent.store(false, Ordering::Relaxed);
        slot.limit.store(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst); // the handler runs on this thread
        slot.turn.store(turn + 1, Ordering::SeqCst);
        if self.shared.is_asleep.load(Ordering::SeqCst) {
            self.shared.wake();
        }
        Entered { budget: self, outer_slot, outer_state: None }
    }

    /// Whether the call that runs must end: for functions in Rust that take long.
    pub(crate) fn is_spent(&self) -> bool {
        self.slot.is_spent.load(Ordering::Relaxed)
    }
}

impl Entered<'_> {
    /// The coroutine in which the script is now.
    pub(crate) fn state(&self) -> *mut lua_State {
        self.budget.slot.state.load(Ordering::Relaxed)
    }

    /// Whether the script used up its budget.
    pub(crate) fn is_spent(&self) -> bool {
        self.budget.is_spent()
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let slot = &*self.budget.slot;
        match self.outer_state {
            Some(outer) => {
                slot.state.store(outer, Ordering::Relaxed);
                if slot.is_spent.load(Ordering::Relaxed) && !outer.is_null() {
                    // SAFETY: the outer call is still running. It has the same budget, and ends as well.
                    unsafe { ffi::lua_sethook(outer, Some(stop), ffi::LUA_MASKCOUNT, 1) };
                }
            }
            None => {
                let turn = slot.turn.load(Ordering::Relaxed);
                slot.turn.store(turn + 1, Ordering::SeqCst);
                compiler_fence(Ordering::SeqCst);
                let state = slot.state.swap(ptr::null_mut(), Ordering::Relaxed);
                if slot.is_spent.load(Ordering::Relaxed) && !state.is_null() {
                    // SAFETY: the state is of this VM, which its owner keeps as long as it is entered. Whatever else was
                    // begun in the VM goes on without the hook.
                    unsafe { ffi::lua_sethook(state, None, 0, 0) };
                }
            }
        }
        RUNNING.set(self.outer_slot);
    }
}

/// The signal handler: has Lua call [`stop`] at the next instruction.
extern "C" fn arm(_: c_int) {
    let slot = RUNNING.get();
    // SAFETY: a slot is only noted while its owner has entered it.
    let Some(slot) = (unsafe { slot.as_ref() }) else { return };
    let turn = slot.turn.load(Ordering::Relaxed);
    let state = slot.state.load(Ordering::Relaxed);
    if turn % 2 == 1 && slot.doomed.load(Ordering::Relaxed) == turn && !state.is_null() {
        slot.is_spent.store(true, Ordering::Relaxed);
        // SAFETY: the state is alive, for it runs on this thread; Lua allows this call in a signal handler.
        unsafe { ffi::lua_sethook(state, Some(stop), ffi::LUA_MASKCOUNT, 1) };
    }
}

/// Called by Lua at every instruction of a script that has used up its time.
unsafe extern "C-unwind" fn stop(state: *mut lua_State, _: *mut ffi::lua_Debug) {
    // SAFETY: Lua calls this between two instructions, where a hook may yield and an error may be raised. Nothing here needs
    // to be dropped.
    unsafe {
        if ffi::lua_isyieldable(state) == 0 {
            ffi::luaL_error(state, c"the script has used up its time".as_ptr());
        }
        // A coroutine is left where it stands, and whoever resumed it gives it up. An error would have to come through all
        // of its calls of `pcall`, and there may be a hundred thousand of them.
        ffi::lua_yield(state, 0);
    }
}

/// The functions with which `prelude.lua` says which coroutine runs.
pub(super) fn functions(lua: &Lua) -> mlua::Result<[Function; 3]> {
    // SAFETY: each follows Lua's protocol for C functions and leaves nothing behind when it raises an error.
    unsafe {
        Ok([lua.create_c_function(begin)?, lua.create_c_function(enter)?, lua.create_c_function(leave)?])
    }
}

fn running() -> Option<&'static Slot> {
    // SAFETY: a slot is only noted while its owner has entered it; no caller keeps the reference.
    unsafe { RUNNING.get().as_ref() }
}

/// `begin()`: the phase runs in this coroutine.
unsafe extern "C-unwind" fn begin(state: *mut lua_State) -> c_int {
    if let Some(slot) = running() {
        slot.state.store(state, Ordering::Relaxed);
    }
    0
}

/// `enter(coroutine)`: it is about to be resumed.
unsafe extern "C-unwind" fn enter(state: *mut lua_State) -> c_int {
    let Some(slot) = running() else { return 0 };
    // SAFETY: the argument is checked.
    let inner = unsafe { ffi::lua_tothread(state, 1) };
    if inner.is_null() {
        return 0; // the stock function says what is wrong with it
    }
    if slot.is_spent.load(Ordering::Relaxed) {
        // SAFETY: nothing here needs to be dropped.
        unsafe { ffi::luaL_error(state, c"the script has used up its time".as_ptr()) };
    }
    slot.state.store(inner, Ordering::Relaxed);
    0
}

/// `leave()`: it has yielded or ended, and the one that resumed it goes on.
unsafe extern "C-unwind" fn leave(state: *mut lua_State) -> c_int {
    let Some(slot) = running() else { return 0 };
    slot.state.store(state, Ordering::Relaxed);
    if slot.is_spent.load(Ordering::Relaxed) {
        // SAFETY: the state is the running one; the error ends it like those it has resumed.
        unsafe {
            ffi::lua_sethook(state, Some(stop), ffi::LUA_MASKCOUNT, 1);
            ffi::luaL_error(state, c"the script has used up its time".as_ptr());
        }
    }
    0
}
