//! The datapath as the agent's loop sees it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use lb_ebpf::abi::device::{Device, UPLINK};
use lb_ebpf::abi::settings::Settings;

use super::apply::Applied;
use super::attach::{self, Change, PacketHook};
use super::keeper::Keeper;
use super::late::Late;
use super::object::{self, Definitions};
use super::pins::Pins;
use super::programs::Programs;
use super::read::KernelState;
use super::roles::Chosen;
use super::tables::Tables;
use super::xdp::{self, Abilities, Seat, Wish};
use super::{Error, Result, joined};
use crate::plan::Write;
use crate::sys::bpf::WriteMode;
use crate::sys::{mount, netlink};

/// Where the datapath lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// A BPF file system, or where to mount one.
    pub bpffs: PathBuf,
    /// Packet hook to use; `None` asks the kernel.
    pub packet_hook: Option<PacketHook>,
}

/// The tables, programs and attachments of this node.
#[derive(Debug)]
pub struct Datapath {
    pins: Pins,
    tables: Tables,
    programs: Programs,
    hook: PacketHook,
    devices: BTreeMap<u32, Chosen>,
    abilities: Abilities,
    /// Of each device whether XDP sits there.
    seats: BTreeMap<u32, (Chosen, Seat)>,
    /// Where the socket hooks sit.
    cgroup: Option<PathBuf>,
    keeper: Keeper,
}

/// What had been taken away from us, and is there again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Restored {
    /// Names of tables and programs.
    pub names: usize,
    pub socket_hooks: usize,
    /// Devices that had lost a program.
    pub devices: Vec<String>,
}

/// What following the devices did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeviceChanges {
    pub attached: Vec<String>,
    pub forgotten: Vec<u32>,
    /// Devices whose programs could not be attached, and why; [`Datapath::set_devices`] tries them again.
    pub failed: Vec<(String, String)>,
}

impl Datapath {
    /// Opens or creates everything but attachments: those that a former agent made keep running meanwhile.
    pub fn open(config: &Config) -> Result<Self> {
        Self::open_object(config, object::embedded()?)
    }

    /// As [`Datapath::open`], with another object than the embedded one.
    pub fn open_object(config: &Config, object: &'static [u8]) -> Result<Self> {
        let mut datapath = Self::begin_object(config, object)?;
        datapath.finish()?;
        Ok(datapath)
    }

    /// As [`Datapath::open`], but does not wait for programs that see packets where none of ours were before: sockets
    /// can be served. Devices want [`Datapath::finish`] first.
    pub fn begin(config: &Config) -> Result<Self> {
        Self::begin_object(config, object::embedded()?)
    }

    fn begin_object(config: &Config, object: &'static [u8]) -> Result<Self> {
        mount::ensure_bpffs(&config.bpffs).map_err(|e| Error::io("find a BPF file system", e))?;
        let pins = Pins::new(&config.bpffs);
        pins.create_directories()?;
        let definitions = Arc::new(Definitions::of(object)?);
        let flows_may_be_there = Tables::were_there(&pins);
        Tables::create(&pins, &definitions)?;
        let (tables, programs) = if flows_may_be_there {
            // Nobody gives up running programs before the tables are known to be fit.
            let tables = Tables::open_created(&pins, &definitions)?;
            (tables, Programs::begin(&pins, &definitions, object)?)
        } else {
            thread::scope(|scope| {
                let programs = scope.spawn(|| Programs::begin(&pins, &definitions, object));
                let tables = Tables::open_created(&pins, &definitions);
                let programs = joined(programs);
                Ok::<_, Error>((tables?, programs?))
            })?
        };
        object::forget();
        if flows_may_be_there && !programs.adopted() {
            Tables::take_all_for_clients(&pins)?;
        }
        programs.arm_sweeper()?;
        let hook = config.packet_hook.unwrap_or_else(PacketHook::probe);
        Ok(Self {
            pins,
            tables,
            programs,
            hook,
            devices: BTreeMap::new(),
            abilities: Abilities::default(),
            seats: BTreeMap::new(),
            cgroup: None,
            keeper: Keeper::default(),
        })
    }

    /// Whether programs that see packets are still being loaded.
    pub fn programs_are_coming(&self) -> bool {
        self.programs.are_coming()
    }

    /// Waits for programs that are still being loaded; what the kernel does not take is an error.
    pub fn finish(&mut self) -> Result<()> {
        self.programs.finish()
    }

    /// Whether the running programs were adopted rather than loaded.
    pub fn adopted(&self) -> bool {
        self.programs.adopted()
    }

    /// Sees to it that a program that may come later is there, unless the kernel does not take it; see
    /// [`Datapath::refusal`].
    pub fn provide(&mut self, program: &str) -> Result<()> {
        self.programs.provide(program)
    }

    /// The programs that come later: they can be loaded by another thread meanwhile.
    pub fn late(&self) -> &Arc<Late> {
        self.programs.late()
    }

    /// Why the kernel did not take a program that may come later, if it was asked.
    pub fn refusal(&self, program: &str) -> Option<String> {
        self.programs.late().refusal(program)
    }

    /// How packet programs are attached.
    pub fn packet_hook(&self) -> PacketHook {
        self.hook
    }

    /// What the tables hold.
    pub fn kernel_state(&self) -> Result<KernelState> {
        self.tables.state()
    }

    /// Carries out plans, each for another Service (or none); see [`Tables::apply`].
    pub fn apply(&mut self, plans: &[&[Write]]) -> Applied {
        self.tables.apply(plans)
    }

    /// What the programs are told now; `None` before the first settings.
    pub fn settings(&self) -> Result<Option<Settings>> {
        let settings = self.tables.settings.get(&0)?;
        Ok(settings.filter(|settings| *settings != Settings::default()))
    }

    /// Writes the settings if they differ; whether they did.
    pub fn set_settings(&self, settings: &Settings) -> Result<bool> {
        self.tables.set_settings(settings)
    }

    /// The tables, for reading.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Attaches the socket hooks to a cgroup; how many changed.
    pub fn attach_sockets(&mut self, cgroup: &Path) -> Result<usize> {
        self.cgroup = Some(cgroup.to_owned());
        attach::attach_sockets(&self.pins, &self.programs, cgroup)
    }

    /// Takes the socket hooks off; how many there were.
    pub fn detach_sockets(&mut self) -> Result<usize> {
        self.cgroup = None;
        attach::detach_sockets(&self.pins)
    }

    /// The devices that have packet programs, by index.
    pub fn devices(&self) -> &BTreeMap<u32, Chosen> {
        &self.devices
    }

    /// Makes exactly these devices have packet programs. One that fails is named and left out.
    pub fn set_devices(&mut self, wanted: &BTreeMap<u32, Chosen>) -> Result<DeviceChanges> {
        let mut changes = DeviceChanges::default();
        self.abilities = Abilities::read();
        for (&index, chosen) in wanted {
            match self.devices.get(&index) {
                Some(known) if known == chosen => continue,
                // An index and name stay attached whatever else changes; only the record is new.
                Some(known)
                    if known.name == chosen.name
                        && known.device.role == chosen.device.role
                        && self.hook == PacketHook::Tcx =>
                {
                    self.write_device(index, chosen)?;
                }
                _ => match self.add_device(index, chosen) {
                    Ok(Change::None) => {}
                    Ok(Change::Attached | Change::Replaced) => {
                        changes.attached.push(chosen.name.clone())
                    }
                    Err(error) => {
                        changes
                            .failed
                            .push((chosen.name.clone(), error.to_string()));
                        continue;
                    }
                },
            }
            self.devices.insert(index, chosen.clone());
        }
        // What a former agent left counts, too.
        let mut known = attach::linked_devices(&self.pins)?;
        known.extend(
            self.tables
                .devices
                .entries()?
                .into_iter()
                .map(|(index, _)| index),
        );
        known.sort_unstable();
        known.dedup();
        for index in known
            .into_iter()
            .filter(|index| !wanted.contains_key(index))
        {
            self.devices.remove(&index);
            // A device that was renamed or that a former agent attached to is known by its index alone.
            let name = netlink::device_name(index).unwrap_or_default();
            match self.forget_device(index, &name) {
                Ok(()) => changes.forgotten.push(index),
                // Its record and its links tell of it the next time.
                Err(error) => tracing::warn!(
                    index, device = name, %error,
                    "could not take the packet programs off a device; trying again when devices change"
                ),
            }
        }
        self.follow_xdp()?;
        Ok(changes)
    }

    fn forget_device(&self, index: u32, name: &str) -> Result<()> {
        attach::detach_device(&self.pins, self.hook, (index, name))?;
        xdp::remove(&self.pins, index)?;
        self.tables.macs.delete(&index)?;
        self.tables.devices.delete(&index)?;
        Ok(())
    }

    /// Puts back what somebody else took away: names of tables and programs, and programs where they sit. What fails
    /// for one does not keep the others; the first failure is told. Cheap enough for every few seconds: a name and a
    /// link cost some microseconds to look at.
    pub fn restore(&mut self) -> (Restored, Result<()>) {
        let mut restored = Restored::default();
        let mut outcome = self.pins.create_directories();
        let names = self.keeper.look(&self.pins);
        outcome = outcome.and(names.map(|names| restored.names = names));
        if let Some(cgroup) = &self.cgroup {
            let hooks = attach::attach_sockets(&self.pins, &self.programs, cgroup);
            outcome = outcome.and(hooks.map(|hooks| restored.socket_hooks = hooks));
        }
        for (&index, chosen) in &self.devices {
            match attach::attach_missing(&self.pins, &self.programs, self.hook, (index, chosen)) {
                Ok(Change::None) => {}
                Ok(Change::Attached | Change::Replaced) => {
                    restored.devices.push(chosen.name.clone())
                }
                // One that has just gone is taken out when the kernel says so.
                Err(_) if netlink::device_name(index).is_none() => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        (restored, outcome)
    }

    /// Makes the devices that are to have XDP have it, as far as they can now, and tells the programs which devices
    /// can send for it: that may change at any time, with another's program, too.
    pub fn follow_xdp(&mut self) -> Result<()> {
        for chosen in self.devices.values() {
            if let Wish::Mode(mode) = chosen.xdp {
                self.programs.provide(mode.program())?;
            }
        }
        let mut seats = BTreeMap::new();
        for (&index, chosen) in &self.devices {
            let seat = match self.seats.get(&index) {
                Some((asked, seat @ Seat::Refused(_))) if asked == chosen => seat.clone(),
                _ => xdp::follow(&self.pins, &self.programs, (index, chosen))?,
            };
            seats.insert(index, (chosen.clone(), seat));
        }
        self.seats = seats;
        self.abilities = Abilities::read();
        for (&index, chosen) in &self.devices {
            self.write_device(index, chosen)?;
        }
        Ok(())
    }

    /// Of each uplink, by name, whether XDP sits there.
    pub fn seats(&self) -> BTreeMap<&str, &Seat> {
        let uplinks = self.devices.iter();
        uplinks
            .filter(|(_, chosen)| chosen.device.role == UPLINK)
            .filter_map(|(index, chosen)| Some((chosen.name.as_str(), &self.seats.get(index)?.1)))
            .collect()
    }

    /// The record first: a program that runs finds what it needs.
    fn add_device(&mut self, index: u32, chosen: &Chosen) -> Result<Change> {
        self.write_device(index, chosen)?;
        for program in attach::programs_of(chosen) {
            self.programs.provide(program)?;
        }
        attach::attach_device(&self.pins, &self.programs, self.hook, (index, chosen))
    }

    fn write_device(&self, index: u32, chosen: &Chosen) -> Result<()> {
        let record = Device {
            flags: self.abilities.flags(index, chosen),
            ..chosen.device
        };
        if self.tables.devices.get(&index)?.as_ref() != Some(&record) {
            self.tables.devices.put(&index, &record, WriteMode::Any)?;
        }
        let known = self.tables.macs.get(&index)?;
        match chosen.mac {
            Some(mac) if known != Some(mac) => {
                self.tables.macs.put(&index, &mac, WriteMode::Any)?;
            }
            None if known.is_some() => drop(self.tables.macs.delete(&index)?),
            _ => {}
        }
        Ok(())
    }
}
