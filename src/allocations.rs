//! Counts allocations: what `streamgate plugin bench` says besides time and memory.
#![allow(unsafe_code)] // a global allocator implements an unsafe trait; each call is passed on as it is

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;

/// An allocator that counts the allocations of a thread while `count` runs there. The program installs it; it costs a look
/// at a variable of the thread for each allocation.
#[derive(Debug, Default)]
pub struct Counting<A>(
    /// The allocator that does the work.
    pub A,
);

thread_local! {
    /// Allocations so far, while they are counted.
    static N_ALLOCATIONS: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Runs something, and counts the allocations of this thread meanwhile: zero in a program without [`Counting`].
pub(crate) fn count<R>(run: impl FnOnce() -> R) -> (R, u64) {
    N_ALLOCATIONS.set(Some(0));
    let result = run();
    (result, N_ALLOCATIONS.take().unwrap_or_default())
}

fn one_more() {
    if let Some(n) = N_ALLOCATIONS.get() {
        N_ALLOCATIONS.set(Some(n + 1));
    }
}

// SAFETY: all calls go to the allocator that is counted, with what they came with.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counting<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        one_more();
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        one_more();
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        one_more();
        unsafe { self.0.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe { self.0.dealloc(block, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allocated_meanwhile_is_counted() {
        let allocator = Counting(std::alloc::System);
        let layout = Layout::from_size_align(64, 8).expect("a layout");
        let use_it = || {
            // SAFETY: the block is used within its layout, and freed once.
            unsafe {
                let block = allocator.alloc_zeroed(layout);
                assert_eq!(*block, 0);
                let block = allocator.realloc(block, layout, 128);
                assert_eq!(*block, 0, "it is the same content");
                allocator.dealloc(block, Layout::from_size_align(128, 8).expect("a layout"));
            }
        };
        use_it();
        assert_eq!(count(use_it).1, 2, "what came before does not count");
        assert_eq!(count(|| ()).1, 0);
    }
}
