//! The tiny guest's program: 64 KiB that a PC runs instead of its firmware.
//!
//! The processor starts in 16-bit mode at the last 16 bytes of the image, goes to flat 32-bit mode,
//! and then works through a list of pages for ever. There is no operating system, no boot time, and
//! no code of anybody else in the guest.

use std::collections::HashMap;

use crate::guest::{BLINK_AT, COUNTER_AT, FIRST_CONTENT_PAGE, Guest, PAGE, STATE_PAGE};

/// The image's length: the smallest that QEMU takes for a PC.
const LEN: usize = 0x1_0000;

/// Where a PC sees the image: it ends where the first 4 GiB end.
const BASE: u32 = 0xffff_0000;

/// Where the processor begins, relative to the image.
const RESET_VECTOR: usize = 0xfff0;

/// The descriptor table's selectors: flat 4 GiB of code, flat 4 GiB of data.
const CODE: u16 = 0x08;
const DATA: u16 = 0x10;

/// The interrupt that the first line of the interrupt controller is mapped to, behind the
/// processor's own exceptions.
const TIMER_INTERRUPT: u8 = 0x20;

/// The processor's interrupt controller: its switch, with the interrupt for spurious ones, and what
/// its first input does.
const APIC_SPURIOUS: u32 = 0xfee0_00f0;
const APIC_LINT0: u32 = 0xfee0_0350;

/// The interval timer's clock is 1.193182 MHz; this divisor makes 100 interrupts a second.
const TIMER_DIVISOR: u16 = 11_932;

/// The first serial port, and its line status register.
const SERIAL: u16 = 0x3f8;
const SERIAL_STATUS: u16 = 0x3fd;

/// State page: the number of the pass, as known outside.
const PASS: u32 = STATE_PAGE * PAGE as u32;
/// State page: passes left until the next report.
const UNTIL_REPORT: u32 = PASS + 4;
/// The stack grows down from the state page's end.
const STACK: u32 = PASS + PAGE as u32;

/// Builds the image for `guest`.
///
/// Registers: `ebp` pass, `ebx` what blinkers hold in this pass, `esi` page at hand, `ecx` pages
/// left of its kind, `edi` pages left until the guest waits for the next tick.
pub fn image(guest: &Guest) -> Vec<u8> {
    let mut asm = Assembler::default();
    let paced = guest.pages_per_tick > 0;

    // 16-bit mode, code segment based at `BASE`.
    asm.op(&[0xfa]); // cli
    asm.op(&[0x2e, 0x66, 0x0f, 0x01, 0x16])
        .offset16("gdt pointer"); // lgdt cs:[gdt pointer], all 32 bits of its base
    asm.op(&[0x0f, 0x20, 0xc0]); // mov eax, cr0
    asm.op(&[0x0c, 0x01]); // or al, 1: protected mode
    asm.op(&[0x0f, 0x22, 0xc0]); // mov cr0, eax
    asm.op(&[0x66, 0xea]).address("flat").imm16(CODE); // jmp far CODE:flat

    asm.label("flat");
    asm.op(&[0x66, 0xb8]).imm16(DATA); // mov ax, DATA
    asm.op(&[0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0]); // mov ds, ax; mov es, ax; mov ss, ax
    asm.op(&[0xbc]).imm32(STACK); // mov esp, STACK
    // in al, 0x92; or al, 2; and al, ~1; out 0x92, al: address line 20 on
    asm.op(&[0xe4, 0x92, 0x0c, 0x02, 0x24, 0xfe, 0xe6, 0x92]);
    if paced {
        start_timer(&mut asm);
    }
    asm.op(&[0xb0, b'S']).call("put"); // "started": seen twice, the guest was reset
    asm.op(&[0xc7, 0x05])
        .imm32(UNTIL_REPORT)
        .imm32(guest.passes_per_report); // mov dword [UNTIL_REPORT], n
    asm.op(&[0x31, 0xed, 0x31, 0xdb]); // xor ebp, ebp; xor ebx, ebx
    asm.op(&[0xbf]).imm32(guest.pages_per_tick); // mov edi, pages per tick

    asm.label("pass");
    asm.op(&[0xbe]).imm32(FIRST_CONTENT_PAGE * PAGE as u32); // mov esi, first page
    if guest.counters > 0 {
        asm.op(&[0xb9]).imm32(guest.counters); // mov ecx, counters
        asm.label("counter");
        note_write(&mut asm);
        asm.op(&[0x39, 0x6e, COUNTER_AT])
            .jump_if_equal("counter is right"); // cmp [esi+COUNTER_AT], ebp
        asm.op(&[0xb0, b'E']).call("put");
        asm.op(&[0x89, 0x6e, COUNTER_AT]); // mov [esi+COUNTER_AT], ebp: one fault is reported once
        asm.label("counter is right");
        asm.op(&[0xff, 0x46, COUNTER_AT]); // inc dword [esi+COUNTER_AT]
        next_page(&mut asm, guest, "counter");
    }
    if guest.blinkers > 0 {
        asm.op(&[0x8d, 0x53, 0x01]); // lea edx, [ebx+1]
        asm.op(&[0x80, 0xfa, guest.blink_cycle])
            .jump_if_not_equal("in cycle"); // cmp dl, cycle
        asm.op(&[0x31, 0xd2]); // xor edx, edx
        asm.label("in cycle");
        asm.op(&[0xb9]).imm32(guest.blinkers); // mov ecx, blinkers
        asm.label("blinker");
        note_write(&mut asm);
        asm.op(&[0x38, 0x9e])
            .imm32(BLINK_AT)
            .jump_if_equal("blinker is right"); // cmp [esi+BLINK_AT], bl
        asm.op(&[0xb0, b'E']).call("put");
        asm.label("blinker is right");
        asm.op(&[0x88, 0x96]).imm32(BLINK_AT); // mov [esi+BLINK_AT], dl
        next_page(&mut asm, guest, "blinker");
        asm.op(&[0x89, 0xd3]); // mov ebx, edx
    }
    asm.op(&[0xbe]).imm32(PASS); // mov esi, PASS
    note_write(&mut asm);
    asm.op(&[0x45]); // inc ebp
    asm.op(&[0x89, 0x2d]).imm32(PASS); // mov [PASS], ebp
    asm.op(&[0xff, 0x0d])
        .imm32(UNTIL_REPORT)
        .jump_if_not_equal("pass"); // dec dword [UNTIL_REPORT]
    asm.op(&[0xc7, 0x05])
        .imm32(UNTIL_REPORT)
        .imm32(guest.passes_per_report);
    asm.op(&[0xb0, b'.']).call("put");
    asm.jump("pass");

    put(&mut asm);
    segment_table(&mut asm);
    if paced {
        interrupt_table(&mut asm);
    }

    let mut image = asm.finish();
    assert!(
        image.len() <= RESET_VECTOR,
        "the guest's program has outgrown its image"
    );
    image.resize(LEN, 0);
    // From the reset vector back to the image's first byte: the offset counts from the end of this
    // instruction.
    let [low, high] = (0u16.wrapping_sub(RESET_VECTOR as u16 + 3)).to_le_bytes();
    image[RESET_VECTOR..RESET_VECTOR + 3].copy_from_slice(&[0xe9, low, high]);
    image
}

/// Maps the interrupt controller's line 0, leaves only that line open, and starts the timer behind
/// it.
fn start_timer(asm: &mut Assembler) {
    asm.op(&[0x0f, 0x01, 0x1d]).address("idt pointer"); // lidt [idt pointer]
    // Edge triggered, with a second controller on line 2, 8086 mode; then the mask.
    for (port, value) in [
        (0x20, 0x11),
        (0x21, TIMER_INTERRUPT),
        (0x21, 0x04),
        (0x21, 0x01),
        (0x21, 0xfe),
    ] {
        asm.op(&[0xb0, value, 0xe6, port]); // mov al, value; out port, al
    }
    // After a reset the processor's own controller lets nothing of that through.
    for (register, value) in [(APIC_SPURIOUS, 0x127), (APIC_LINT0, 0x700)] {
        asm.op(&[0xc7, 0x05]).imm32(register).imm32(value); // mov dword [register], value
    }
    let [low, high] = TIMER_DIVISOR.to_le_bytes();
    // Channel 0, both bytes of the divisor, mode 2 (periodic).
    for (port, value) in [(0x43, 0x34), (0x40, low), (0x40, high)] {
        asm.op(&[0xb0, value, 0xe6, port]);
    }
}

/// Makes sure that QEMU notices a write to the page at `esi`.
///
/// QEMU 7.2 under TCG can take an emulated translation for one whose page is known to be dirty
/// after the migration has collected and cleared the dirty pages. Later writes to such a page are
/// then lost in a migration, with and without multifd. A fresh translation for every write keeps
/// that out of what is tested here; 10.0 and 11.1 lose nothing.
fn note_write(asm: &mut Assembler) {
    asm.op(&[0x0f, 0x01, 0x3e]); // invlpg [esi]
}

/// Steps to the next page of the list whose loop begins at `again`; a paced guest sleeps once its
/// share of the tick is done.
fn next_page(asm: &mut Assembler, guest: &Guest, again: &str) {
    asm.op(&[0x81, 0xc6]).imm32(PAGE as u32); // add esi, PAGE
    if guest.pages_per_tick > 0 {
        let awake = format!("{again}: awake");
        asm.op(&[0x4f]).jump_if_not_equal(&awake); // dec edi
        asm.op(&[0x0f, 0x01, 0x3d]).imm32(PASS); // invlpg [PASS]: the interrupt writes to the stack
        asm.op(&[0xfb, 0xf4, 0xfa]); // sti; hlt; cli
        asm.op(&[0xbf]).imm32(guest.pages_per_tick); // mov edi, pages per tick
        asm.label(&awake);
    }
    asm.op(&[0x49]).jump_if_not_equal(again); // dec ecx
}

fn put(asm: &mut Assembler) {
    asm.label("put"); // writes al to the serial port; clobbers eax
    asm.op(&[0x52, 0x88, 0xc4]); // push edx; mov ah, al
    asm.op(&[0x66, 0xba]).imm16(SERIAL_STATUS); // mov dx, SERIAL_STATUS
    asm.label("put: busy");
    // in al, dx; test al, 0x20 (ready for a byte)
    asm.op(&[0xec, 0xa8, 0x20]).jump_if_equal("put: busy");
    asm.op(&[0x66, 0xba]).imm16(SERIAL); // mov dx, SERIAL
    asm.op(&[0x88, 0xe0, 0xee, 0x5a, 0xc3]); // mov al, ah; out dx, al; pop edx; ret
}

/// The segments. Their table lies in read-only memory, so the descriptors carry the "accessed" mark
/// from the start.
fn segment_table(asm: &mut Assembler) {
    asm.label("gdt");
    for descriptor in [0, 0x00cf_9b00_0000_ffff_u64, 0x00cf_9300_0000_ffff] {
        asm.op(&descriptor.to_le_bytes());
    }
    asm.label("gdt pointer").imm16(3 * 8 - 1).address("gdt");
}

/// What happens on the timer's interrupt: nothing but that the guest goes on.
fn interrupt_table(asm: &mut Assembler) {
    // Every line of the first interrupt controller, for one that is raised and gone again shows as
    // its last line. A processor exception has no gate: it resets the guest, which then says that
    // it starts anew.
    const LINES: u16 = 8;
    asm.label("idt").op(&[0; 8 * TIMER_INTERRUPT as usize]);
    for _ in 0..LINES {
        asm.address_low("tick")
            .imm16(CODE)
            .imm16(0x8e00)
            .address_high("tick");
    }
    asm.label("idt pointer")
        .imm16((u16::from(TIMER_INTERRUPT) + LINES) * 8 - 1)
        .address("idt");

    asm.label("tick");
    // push eax; mov al, 0x20; out 0x20, al (end of interrupt); pop eax; iret
    asm.op(&[0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf]);
}

/// Collects machine code, and fills in the places of labels at the end.
#[derive(Default)]
struct Assembler {
    code: Vec<u8>,
    labels: HashMap<String, usize>,
    holes: Vec<(usize, Hole, String)>,
}

/// What an instruction wants to know about a label.
#[derive(Clone, Copy)]
enum Hole {
    /// Its distance from the end of the four-byte hole.
    Relative32,
    /// Its address.
    Address32,
    AddressLow16,
    AddressHigh16,
    /// Its offset in the image.
    Offset16,
}

impl Assembler {
    fn op(&mut self, bytes: &[u8]) -> &mut Self {
        self.code.extend_from_slice(bytes);
        self
    }

    fn imm16(&mut self, value: u16) -> &mut Self {
        self.op(&value.to_le_bytes())
    }

    fn imm32(&mut self, value: u32) -> &mut Self {
        self.op(&value.to_le_bytes())
    }

    fn label(&mut self, name: &str) -> &mut Self {
        let known = self.labels.insert(name.to_owned(), self.code.len());
        assert!(known.is_none(), "two labels {name}");
        self
    }

    fn call(&mut self, label: &str) -> &mut Self {
        self.op(&[0xe8]).hole(Hole::Relative32, label)
    }

    fn jump(&mut self, label: &str) -> &mut Self {
        self.op(&[0xe9]).hole(Hole::Relative32, label)
    }

    fn jump_if_equal(&mut self, label: &str) -> &mut Self {
        self.op(&[0x0f, 0x84]).hole(Hole::Relative32, label)
    }

    /// Also "if not zero", after `dec`.
    fn jump_if_not_equal(&mut self, label: &str) -> &mut Self {
        self.op(&[0x0f, 0x85]).hole(Hole::Relative32, label)
    }

    fn address(&mut self, label: &str) -> &mut Self {
        self.hole(Hole::Address32, label)
    }

    fn address_low(&mut self, label: &str) -> &mut Self {
        self.hole(Hole::AddressLow16, label)
    }

    fn address_high(&mut self, label: &str) -> &mut Self {
        self.hole(Hole::AddressHigh16, label)
    }

    fn offset16(&mut self, label: &str) -> &mut Self {
        self.hole(Hole::Offset16, label)
    }

    fn hole(&mut self, hole: Hole, label: &str) -> &mut Self {
        self.holes.push((self.code.len(), hole, label.to_owned()));
        self.op(match hole {
            Hole::Relative32 | Hole::Address32 => &[0; 4],
            Hole::AddressLow16 | Hole::AddressHigh16 | Hole::Offset16 => &[0; 2],
        })
    }

    fn finish(mut self) -> Vec<u8> {
        for (place, hole, label) in self.holes {
            let offset = *self
                .labels
                .get(&label)
                .unwrap_or_else(|| panic!("no label {label}"));
            let address = (BASE + offset as u32).to_le_bytes();
            let distance = (offset as i32 - place as i32 - 4).to_le_bytes();
            let bytes = match hole {
                Hole::Relative32 => &distance[..],
                Hole::Address32 => &address[..],
                Hole::AddressLow16 | Hole::Offset16 => &address[..2],
                Hole::AddressHigh16 => &address[2..],
            };
            self.code[place..place + bytes.len()].copy_from_slice(bytes);
        }
        self.code
    }
}

#[cfg(test)]
mod tests {
    use super::{BASE, LEN, RESET_VECTOR, image};
    use crate::Guest;

    #[test]
    fn every_kind_of_guest_has_an_image() {
        for (counters, blinkers, pages_per_tick) in [(0, 0, 0), (5, 0, 0), (0, 5, 1), (5, 5, 1)] {
            let guest = Guest {
                counters,
                blinkers,
                pages_per_tick,
                ..Guest::default()
            };
            assert_eq!(image(&guest).len(), LEN);
        }
    }

    #[test]
    fn the_reset_vector_leads_to_the_first_byte() {
        let image = image(&Guest::default());
        assert_eq!(image.len(), LEN);
        assert_eq!(image[RESET_VECTOR], 0xe9);
        let jump = u16::from_le_bytes([image[RESET_VECTOR + 1], image[RESET_VECTOR + 2]]);
        assert_eq!((RESET_VECTOR as u16 + 3).wrapping_add(jump), 0);
        assert_eq!(BASE.wrapping_add(LEN as u32), 0);
    }
}
