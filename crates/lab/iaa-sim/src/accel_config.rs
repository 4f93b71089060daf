//! The C functions of libaccel-config that libqpl looks up.
//!
//! Prototypes follow `accfg/libaccel_config.h`. Contexts, devices and queues are opaque to the
//! caller, which passes back the pointers it got from here.

#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_uint};
use std::ptr;
use std::sync::Arc;

use crate::descriptor::opcode;
use crate::machine::MACHINE;
use crate::queue::Queue;
use crate::settings::{AccelConfig, Access, Operations, Settings};

/// All devices (C: `struct accfg_ctx`). Made by [`accfg_new`] and never freed: libqpl makes one per
/// process, and the queues' threads outlive it.
pub struct Context {
    devices: Vec<Device>,
}

/// A device (C: `struct accfg_device`).
pub struct Device {
    name: CString,
    settings: Arc<Settings>,
    queues: Vec<WorkQueue>,
    next: *const Device,
}

/// A work queue (C: `struct accfg_wq`).
pub struct WorkQueue {
    name: CString,
    id: c_int,
    device_node: CString,
    settings: Arc<Settings>,
    next: *const WorkQueue,
}

/// C: `struct accfg_op_config`. One bit for each operation code; word 7 has bits 0 to 31.
#[repr(C)]
pub struct OpConfig {
    bits: [u32; 8],
}

fn machine() -> Option<Context> {
    let settings = MACHINE.settings();
    if settings.library == AccelConfig::Broken {
        return None;
    }
    let mut devices = Vec::new();
    for device in 1..=settings.devices {
        let mut queues = Vec::new();
        for id in 0..settings.queues {
            let device_node = match settings.access {
                Access::Granted => {
                    let queue = Queue::start(settings.depth);
                    let queue = queue.inspect_err(|error| eprintln!("iaa-sim: no queue: {error}"));
                    queue.ok()?.device_node()
                }
                // A directory cannot be opened for writing, even by root.
                Access::Denied => "/".to_owned(),
                // It opens, cannot be mapped, and has no room for any write.
                Access::Refused => "/dev/full".to_owned(),
            };
            queues.push(WorkQueue {
                name: c_string(format!("wq{device}.{id}")),
                id: id as c_int,
                device_node: c_string(device_node),
                settings: Arc::clone(&settings),
                next: ptr::null(),
            });
        }
        devices.push(Device {
            name: c_string(format!("iax{device}")),
            settings: Arc::clone(&settings),
            queues,
            next: ptr::null(),
        });
    }
    // The vectors no longer grow, so their elements stay in place.
    chain(&mut devices, |device, next| device.next = next);
    for device in &mut devices {
        chain(&mut device.queues, |queue, next| queue.next = next);
    }
    Some(Context { devices })
}

fn chain<T>(items: &mut [T], set_next: impl Fn(&mut T, *const T)) {
    let mut next = ptr::null();
    for item in items.iter_mut().rev() {
        set_next(item, next);
        next = item;
    }
}

fn c_string(text: String) -> CString {
    CString::new(text).expect("none of our names has a NUL")
}

/// Defines C functions.
macro_rules! c_functions {
    ($(
        $(#[$doc:meta])*
        fn $name:ident($($parameter:ident: $type:ty),*) -> $result:ty $body:block
    )*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        ///
        /// A pointer to a context, device or queue is one that a function of this module returned;
        /// a pointer to anything else is writable.
        // SAFETY: the name is libaccel-config's, which this library replaces.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($parameter: $type),*) -> $result $body
    )*};
}

/// Dereferences a pointer from the caller.
macro_rules! given {
    ($pointer:expr) => {{
        // SAFETY: by the functions' contract the pointer came from here, and nothing is ever freed.
        unsafe { &*$pointer }
    }};
}

c_functions! {
    /// Makes the context. Returns 0, or a negative number.
    fn accfg_new(context: *mut *mut Context) -> c_int {
        let Some(machine) = machine() else {
            return -12;
        };
        // SAFETY: by the functions' contract `context` is writable.
        unsafe { context.write(Box::into_raw(Box::new(machine))) };
        0
    }

    /// Releases the context.
    fn accfg_unref(_context: *mut Context) -> *mut Context {
        ptr::null_mut()
    }

    /// The first device, or null.
    fn accfg_device_get_first(context: *const Context) -> *const Device {
        given!(context).devices.first().map_or(ptr::null(), ptr::from_ref)
    }

    /// The device after this one, or null.
    fn accfg_device_get_next(device: *const Device) -> *const Device {
        given!(device).next
    }

    /// The name in sysfs.
    fn accfg_device_get_devname(device: *const Device) -> *const c_char {
        given!(device).name.as_ptr()
    }

    /// 0 disabled, 1 enabled.
    fn accfg_device_get_state(device: *const Device) -> c_int {
        c_int::from(given!(device).settings.device_enabled)
    }

    /// The GENCAP register: block on fault, decompression, 2 GiB of transfer.
    fn accfg_device_get_gen_cap(_device: *const Device) -> u64 {
        1 | 31 << 16 | 1 << 40
    }

    /// The NUMA node, or -1.
    fn accfg_device_get_numa_node(device: *const Device) -> c_int {
        given!(device).settings.numa_node
    }

    /// 0x100 for the first generation, 0x200 for the second.
    fn accfg_device_get_version(device: *const Device) -> c_uint {
        match given!(device).settings.library {
            AccelConfig::Old | AccelConfig::OldKernel => 0x200,
            AccelConfig::Current | AccelConfig::Broken => 0x100,
        }
    }

    /// The IAACAP register of the second generation. Returns 0; libqpl takes 1 for a library
    /// without this function, a negative number for a kernel without the attribute.
    fn accfg_device_get_iaa_cap(device: *const Device, capabilities: *mut u64) -> c_int {
        match given!(device).settings.library {
            AccelConfig::Old => 1,
            AccelConfig::OldKernel => -2,
            AccelConfig::Current | AccelConfig::Broken => {
                // SAFETY: by the functions' contract `capabilities` is writable.
                unsafe { capabilities.write(0) };
                0
            }
        }
    }

    /// The device's largest transfer in bytes.
    fn accfg_device_get_max_transfer_size(_device: *const Device) -> u64 {
        1 << 31
    }

    /// The first queue, or null.
    fn accfg_wq_get_first(device: *const Device) -> *const WorkQueue {
        given!(device).queues.first().map_or(ptr::null(), ptr::from_ref)
    }

    /// The queue after this one, or null.
    fn accfg_wq_get_next(queue: *const WorkQueue) -> *const WorkQueue {
        given!(queue).next
    }

    /// The name in sysfs.
    fn accfg_wq_get_devname(queue: *const WorkQueue) -> *const c_char {
        given!(queue).name.as_ptr()
    }

    /// 0 disabled, 1 enabled.
    fn accfg_wq_get_state(queue: *const WorkQueue) -> c_int {
        c_int::from(given!(queue).settings.queue_enabled)
    }

    /// 0 shared, 1 dedicated.
    fn accfg_wq_get_mode(queue: *const WorkQueue) -> c_int {
        c_int::from(given!(queue).settings.dedicated)
    }

    /// The number within the device.
    fn accfg_wq_get_id(queue: *const WorkQueue) -> c_int {
        given!(queue).id
    }

    /// The priority.
    fn accfg_wq_get_priority(_queue: *const WorkQueue) -> c_int {
        10
    }

    /// Whether the queue waits for missing pages.
    fn accfg_wq_get_block_on_fault(queue: *const WorkQueue) -> c_int {
        c_int::from(given!(queue).settings.block_on_fault)
    }

    /// The queue's largest transfer in bytes.
    fn accfg_wq_get_max_transfer_size(queue: *const WorkQueue) -> u64 {
        given!(queue).settings.max_transfer_bytes
    }

    /// The operations that the queue accepts. Returns 0; libqpl takes 1 for a library without this
    /// function, and then every operation is accepted.
    fn accfg_wq_get_op_config(queue: *const WorkQueue, config: *mut OpConfig) -> c_int {
        let permitted = match given!(queue).settings.operations {
            Operations::All => return 1,
            Operations::Compress => opcode::COMPRESS,
            Operations::Decompress => opcode::DECOMPRESS,
        };
        let mut bits = [0; 8];
        bits[7 - usize::from(permitted / 32)] = 1 << (permitted % 32);
        // SAFETY: by the functions' contract `config` is writable.
        unsafe { config.write(OpConfig { bits }) };
        0
    }

    /// Writes the path of the device node, ended by a NUL, into a buffer of `len_bytes`. Returns
    /// its length without the NUL, or a negative number.
    fn accfg_wq_get_user_dev_path(
        queue: *const WorkQueue,
        buffer: *mut c_char,
        len_bytes: usize
    ) -> c_int {
        let path = given!(queue).device_node.as_bytes_with_nul();
        if path.len() > len_bytes {
            return -34;
        }
        // SAFETY: by the functions' contract `buffer` is writable, and it is long enough.
        unsafe { buffer.cast::<u8>().copy_from_nonoverlapping(path.as_ptr(), path.len()) };
        path.len() as c_int - 1
    }
}
