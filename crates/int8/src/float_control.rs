//! The floating-point control register of the calling thread.
//!
//! The arithmetic needs round to nearest even and subnormal numbers. Libraries
//! such as libtorch may set a thread to flush subnormals to zero, and the
//! setting stays. Every computation therefore sets the default first and
//! restores the former setting at its end.

/// While it exists, the calling thread computes by the rules of IEEE 754's
/// defaults: round to nearest even, no flush to zero, no traps.
#[derive(Debug)]
pub struct DefaultFloatControl {
    /// The former setting, if it was another one.
    former: Option<Control>,
    /// The register belongs to the thread, so the guard must not leave it.
    _thread: std::marker::PhantomData<*const ()>,
}

impl DefaultFloatControl {
    /// Sets the default.
    pub fn set() -> Self {
        let control = read();
        let former = (control & SIGNIFICANT != DEFAULT).then(|| {
            write(DEFAULT);
            control
        });
        Self {
            former,
            _thread: std::marker::PhantomData,
        }
    }
}

impl Drop for DefaultFloatControl {
    fn drop(&mut self) {
        if let Some(former) = self.former {
            write(former);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod register {
    use std::arch::asm;

    /// MXCSR.
    pub(super) type Control = u32;

    /// All exceptions masked, nearest even, no flush to zero, subnormal inputs
    /// as they are.
    pub(super) const DEFAULT: Control = 0x1F80;

    /// All bits but the six flags of exceptions that occurred.
    pub(super) const SIGNIFICANT: Control = 0xFFC0;

    pub(super) fn read() -> Control {
        let mut control = 0u32;
        // SAFETY: stores four bytes to a place that has them.
        unsafe {
            asm!("stmxcsr [{}]", in(reg) &raw mut control, options(nostack, preserves_flags))
        };
        control
    }

    pub(super) fn write(control: Control) {
        // SAFETY: the value is the default or was read from the register, so
        // no reserved bit is set. Code compiled by Rust expects the default;
        // the only other value written is the one that was found.
        unsafe {
            asm!("ldmxcsr [{}]", in(reg) &raw const control, options(nostack, preserves_flags))
        };
    }
}

#[cfg(target_arch = "aarch64")]
mod register {
    use std::arch::asm;

    /// FPCR.
    pub(super) type Control = u64;

    /// Nearest even, no flush to zero, no traps.
    pub(super) const DEFAULT: Control = 0;

    /// AHP, DN, FZ, rounding mode, FZ16, traps, NEP, AH and FIZ.
    pub(super) const SIGNIFICANT: Control = 0x07C8_9F07;

    pub(super) fn read() -> Control {
        let control: u64;
        // SAFETY: reads a register that every thread may read.
        unsafe { asm!("mrs {}, fpcr", out(reg) control, options(nostack)) };
        control
    }

    pub(super) fn write(control: Control) {
        // SAFETY: as on x86-64.
        unsafe { asm!("msr fpcr, {}", in(reg) control, options(nostack)) };
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod register {
    //! Other targets are assumed to keep the default.

    pub(super) type Control = u32;
    pub(super) const DEFAULT: Control = 0;
    pub(super) const SIGNIFICANT: Control = Control::MAX;

    pub(super) fn read() -> Control {
        DEFAULT
    }

    pub(super) fn write(_: Control) {}
}

use register::{Control, DEFAULT, SIGNIFICANT, read, write};

#[cfg(test)]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tests {
    use super::*;

    /// Flush to zero: FZ and DAZ of MXCSR, FZ of FPCR.
    #[cfg(target_arch = "x86_64")]
    const FLUSH: Control = DEFAULT | 0x8040;
    #[cfg(target_arch = "aarch64")]
    const FLUSH: Control = 0x0100_0000;

    #[test]
    fn the_default_holds_inside_and_the_former_setting_returns() {
        let before = read();
        write(FLUSH);
        let inside = {
            let _control = DefaultFloatControl::set();
            read()
        };
        let after = read();
        write(before);
        assert_eq!(inside & SIGNIFICANT, DEFAULT);
        assert_eq!(after & SIGNIFICANT, FLUSH);
    }
}
