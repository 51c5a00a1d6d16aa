//! Clocks, power and throttling while something is measured. Read only: no setting is ever changed.

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::Clock;

/// NVML's view of one GPU. Not there without the library; then records say 0.
pub struct Clocks {
    nvml: Nvml,
    index: u32,
}

/// What NVML says at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockSample {
    /// SM clock, MHz.
    pub sm_mhz: u32,
    /// Power, milliwatts.
    pub power_milliwatts: u32,
    /// Reasons for a lower clock, as NVML's bit mask; idle and application settings are none.
    pub throttle_reasons: u64,
}

impl ClockSample {
    /// NVML's names of the reasons for a lower clock.
    pub fn throttled_by(&self) -> Vec<&'static str> {
        REASONS.iter().filter(|(bit, _)| self.throttle_reasons & bit != 0).map(|(_, name)| *name).collect()
    }
}

impl Clocks {
    /// Opens NVML for the GPU that CUDA calls `ordinal`. Orders can differ, so the product's name must agree.
    pub fn of(product: &str, ordinal: u32) -> Option<Self> {
        let nvml = Nvml::init().ok()?;
        let agrees =
            |index: u32| nvml.device_by_index(index).and_then(|device| device.name()).is_ok_and(|name| name == product);
        let count = nvml.device_count().ok()?;
        let index = std::iter::once(ordinal).chain(0..count).find(|&index| index < count && agrees(index))?;
        Some(Self { nvml, index })
    }

    /// A sample of now; zeros where NVML cannot say.
    pub fn sample(&self) -> ClockSample {
        let Ok(device) = self.nvml.device_by_index(self.index) else { return ClockSample::default() };
        let reasons = device.current_throttle_reasons().map_or(0, |reasons| reasons.bits());
        ClockSample {
            sm_mhz: device.clock_info(Clock::SM).unwrap_or(0),
            power_milliwatts: device.power_usage().unwrap_or(0),
            throttle_reasons: reasons & !HARMLESS_REASONS,
        }
    }

    /// Whether the driver stays loaded while nobody uses the GPU; `None` where NVML cannot say.
    pub fn is_persistent(&self) -> Option<bool> {
        self.nvml.device_by_index(self.index).and_then(|device| device.is_in_persistent_mode()).ok()
    }

    pub(super) fn default_power_limit_watts(&self) -> u32 {
        let device = self.nvml.device_by_index(self.index);
        device.and_then(|device| device.power_management_limit_default()).map_or(0, |milliwatts| milliwatts / 1000)
    }

    pub(super) fn is_mig(&self) -> bool {
        let device = self.nvml.device_by_index(self.index);
        device.and_then(|device| device.mig_mode()).is_ok_and(|mode| mode.current != 0)
    }

    pub(super) fn driver_version(&self) -> Option<String> {
        self.nvml.sys_driver_version().ok()
    }
}

/// GPU idle and applications clocks setting.
const HARMLESS_REASONS: u64 = 0x1 | 0x2;

/// NVML's other reasons (nvml.h, `nvmlClocksEventReason...`).
const REASONS: [(u64, &str); 7] = [
    (0x4, "software power cap"),
    (0x8, "hardware slowdown"),
    (0x10, "sync boost"),
    (0x20, "software thermal slowdown"),
    (0x40, "hardware thermal slowdown"),
    (0x80, "hardware power brake"),
    (0x100, "display clocks"),
];
