//! Memory for programs of one thread that live for milliseconds: dlmalloc without a mutex, on pages that come filled.
//!
//! musl's own allocator maps and unmaps pages for almost every list that grows: 220 of the 1,270 system calls of a `run`. `GlobalDlmalloc` of
//! the crate takes a pthread mutex each time, which was a seventh of what a `run` computes. And each page that is touched for the
//! first time costs a fault, unless the kernel is asked for several at once.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use dlmalloc::Dlmalloc;

/// A `#[global_allocator]`. Right with several threads too, which then wait for each other in turns.
#[derive(Debug)]
pub struct Allocator {
    is_taken: AtomicBool,
    heap: Heap,
}

struct Heap(UnsafeCell<Dlmalloc<Pages>>);

impl std::fmt::Debug for Heap {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Heap")
    }
}

// SAFETY: the heap is reached through `Allocator::with` alone, by one thread at a time.
unsafe impl Sync for Heap {}

impl Allocator {
    #[must_use]
    pub const fn new() -> Self {
        Self { is_taken: AtomicBool::new(false), heap: Heap(UnsafeCell::new(Dlmalloc::new_with_allocator(Pages))) }
    }

    fn with<T>(&self, action: impl FnOnce(&mut Dlmalloc<Pages>) -> T) -> T {
        while self.is_taken.swap(true, Ordering::Acquire) {
            std::thread::yield_now();
        }
        // SAFETY: `is_taken` was false and is ours now, so nobody else has this reference; `action` is a call into dlmalloc, which calls
        // `Pages` and nothing that allocates.
        let answer = action(unsafe { &mut *self.heap.0.get() });
        self.is_taken.store(false, Ordering::Release);
        answer
    }
}

impl Default for Allocator {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: dlmalloc keeps the contract; each call is made with the layout that the caller was given the memory with.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout has a size; dlmalloc takes any alignment that is a power of two, as a layout's is.
        self.with(|heap| unsafe { heap.malloc(layout.size(), layout.align()) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller says that `memory` is of this allocator, with this layout.
        self.with(|heap| unsafe { heap.free(memory, layout.size(), layout.align()) });
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as for `alloc`.
        self.with(|heap| unsafe { heap.calloc(layout.size(), layout.align()) })
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as for `dealloc`, and `size` is not zero.
        self.with(|heap| unsafe { heap.realloc(memory, layout.size(), layout.align(), size) })
    }
}

/// Where the heap gets its memory.
struct Pages;

/// Beyond this, whoever asks for so much may not touch it all.
const FILLED_BYTES_MAX: usize = 256 * 1024;

// SAFETY: what `alloc` returns is mapped, writable, zero and nobody else's.
unsafe impl dlmalloc::Allocator for Pages {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let filled = if size <= FILLED_BYTES_MAX { libc::MAP_POPULATE } else { 0 };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | filled;
        // SAFETY: a new mapping where the kernel likes; it touches none that is there.
        let memory = unsafe { libc::mmap(ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if memory == libc::MAP_FAILED { (ptr::null_mut(), 0, 0) } else { (memory.cast(), size, 0) }
    }

    fn remap(&self, memory: *mut u8, old_size: usize, new_size: usize, can_move: bool) -> *mut u8 {
        let flags = if can_move { libc::MREMAP_MAYMOVE } else { 0 };
        // SAFETY: dlmalloc names a mapping that it got from `alloc`, and uses only the answer from here on.
        let moved = unsafe { libc::mremap(memory.cast(), old_size, new_size, flags) };
        if moved == libc::MAP_FAILED { ptr::null_mut() } else { moved.cast() }
    }

    fn free_part(&self, memory: *mut u8, old_size: usize, new_size: usize) -> bool {
        // SAFETY: the part is within a mapping that dlmalloc got from `alloc` and no longer uses.
        unsafe { libc::munmap(memory.wrapping_add(new_size).cast(), old_size - new_size) == 0 }
    }

    fn free(&self, memory: *mut u8, size: usize) -> bool {
        // SAFETY: a whole mapping from `alloc` that dlmalloc no longer uses.
        unsafe { libc::munmap(memory.cast(), size) == 0 }
    }

    fn can_release_part(&self, _flags: u32) -> bool {
        true
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        4096
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zero_aligned_and_keeps_what_it_holds() {
        let allocator = Allocator::new();
        for (size, align) in [(1, 1), (100, 64), (70_000, 4096), (1 << 20, 16)] {
            let layout = Layout::from_size_align(size, align).unwrap();
            // SAFETY: each block is used within its layout and given back once, with the layout that it has by then.
            unsafe {
                let block = allocator.alloc_zeroed(layout);
                assert!(!block.is_null() && block.addr().is_multiple_of(align));
                assert!(std::slice::from_raw_parts(block, size).iter().all(|byte| *byte == 0));
                block.write_bytes(7, size);
                let larger = allocator.realloc(block, layout, size * 3);
                assert!(std::slice::from_raw_parts(larger, size).iter().all(|byte| *byte == 7));
                allocator.dealloc(larger, Layout::from_size_align(size * 3, align).unwrap());
            }
        }
    }

    #[test]
    fn threads_do_not_get_the_same_block() {
        let allocator = Allocator::new();
        let layout = Layout::from_size_align(24, 8).unwrap();
        std::thread::scope(|scope| {
            for number in 0..4u8 {
                let allocator = &allocator;
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        // SAFETY: used within its layout, given back once.
                        unsafe {
                            let block = allocator.alloc(layout);
                            block.write_bytes(number, layout.size());
                            let held = std::slice::from_raw_parts(block, layout.size());
                            assert!(held.iter().all(|byte| *byte == number));
                            allocator.dealloc(block, layout);
                        }
                    }
                });
            }
        });
    }
}
