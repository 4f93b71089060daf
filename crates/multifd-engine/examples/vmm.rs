//! A VMM built on vm-memory sends its guest to another one.
//!
//!     cargo run -p multifd-engine --features vm-memory --example vmm
//!
//! The guest is a thread that counts in memory; its one register is the device state. Both VMMs are
//! in this process, which makes no difference to either.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use multifd_engine::destination::{self, DestinationSettings};
use multifd_engine::dirty::AtomicBitmapLog;
use multifd_engine::memory::VmMemory;
use multifd_engine::source::{self, Guest};
use multifd_engine::{Parameters, VmError, VmHandle};
use multifd_transport::Cancel;
use multifd_transport::incoming::Acceptor;
use multifd_wire::Method;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

type Memory = GuestMemoryMmap<AtomicBitmap>;

const MEMORY_BYTES: usize = 16 << 20;

/// What a VMM knows of its guest beside memory.
#[derive(Default)]
struct Vcpu {
    running: bool,
    /// The guest's counter.
    register: u64,
}

/// A VMM. Its handle for the engine is a clone.
#[derive(Clone)]
struct Vmm {
    memory: Arc<Memory>,
    vcpu: Arc<Mutex<Vcpu>>,
}

impl Vmm {
    fn new() -> Result<Self, VmError> {
        // Below and above the hole that PCs have for devices.
        let regions = [
            (GuestAddress(0), MEMORY_BYTES / 2),
            (GuestAddress(1 << 32), MEMORY_BYTES / 2),
        ];
        Ok(Self {
            memory: Arc::new(Memory::from_ranges(&regions)?),
            vcpu: Arc::default(),
        })
    }

    /// One step of the guest, if it runs. It is never in one while the lock can be had.
    fn step(&self) -> Result<(), VmError> {
        let mut vcpu = self.vcpu.lock().map_err(|_| "a step went wrong")?;
        if vcpu.running {
            for _ in 0..64 {
                let half = MEMORY_BYTES as u64 / 2;
                let word = vcpu.register.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (half / 8);
                let base = vcpu.register % 2 * (1 << 32);
                let address = GuestAddress(base + word * 8);
                self.memory.write_obj(vcpu.register, address)?;
                vcpu.register += 1;
            }
        }
        Ok(())
    }

    fn register(&self) -> u64 {
        self.vcpu.lock().map_or(0, |vcpu| vcpu.register)
    }
}

impl VmHandle for Vmm {
    fn pause(&mut self) -> Result<(), VmError> {
        self.vcpu
            .lock()
            .map_err(|_| "the guest has crashed")?
            .running = false;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), VmError> {
        self.vcpu
            .lock()
            .map_err(|_| "the guest has crashed")?
            .running = true;
        Ok(())
    }

    fn save_device_state(&mut self) -> Result<Vec<u8>, VmError> {
        Ok(self.register().to_le_bytes().to_vec())
    }

    fn load_device_state(&mut self, state: &[u8]) -> Result<(), VmError> {
        let register = u64::from_le_bytes(state.try_into()?);
        self.vcpu
            .lock()
            .map_err(|_| "the guest has crashed")?
            .register = register;
        Ok(())
    }
}

fn main() -> Result<(), VmError> {
    let (here, there) = (Vmm::new()?, Vmm::new()?);
    let mut acceptor = Acceptor::bind(&"tcp:127.0.0.1:0".parse()?)?;
    let address = acceptor.address().clone();
    here.clone().resume()?;
    let over = Cancel::new();
    // Here as there, all regions have to be mapped and aligned.
    let memory = VmMemory::fresh(&*there.memory)?;
    thread::scope(|scope| {
        // Either guest's virtual CPU.
        for vmm in [&here, &there] {
            let over = &over;
            scope.spawn(move || {
                while !over.is_cancelled() && vmm.step().is_ok() {
                    thread::yield_now();
                }
            });
        }
        let destination = scope.spawn(|| {
            let mut vm = there.clone();
            let settings = DestinationSettings::default();
            let received = destination::receive(
                &mut acceptor,
                |_| Ok(memory),
                &mut vm,
                &settings,
                &Cancel::new(),
                &mut |_| {},
            );
            received.map(|received| received.arrived)
        });

        let mut parameters = Parameters::default();
        parameters.multifd_compression = Method::Zstd;
        let guest = Guest {
            uuid: [0; 16],
            memory: &VmMemory::new(&*here.memory)?,
            dirty: &mut AtomicBitmapLog::new(&*here.memory),
            vm: &mut here.clone(),
        };
        let sent = source::send(&address, guest, &parameters, &Cancel::new(), &mut |_| {});
        let arrived = destination.join();
        let counted = here.register();
        // The guest counts on at one end only. A busy host may take long to let it.
        let deadline = Instant::now() + Duration::from_secs(10);
        thread::sleep(Duration::from_millis(20));
        while there.register() <= counted && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        over.cancel();

        let statistics = sent?;
        let arrived = arrived.map_err(|_| "the destination crashed")??;
        println!(
            "{} pages in {} bytes, {} rounds, {:?}, of which the guest stood still {:?}",
            arrived.normal,
            statistics.transferred,
            statistics.rounds,
            statistics.total_time,
            statistics.downtime
        );
        if here.register() != counted || there.register() <= counted {
            return Err("the guest runs in the wrong place".into());
        }
        println!(
            "the guest has counted to {counted} here and to {} there",
            there.register()
        );
        Ok(())
    })
}
