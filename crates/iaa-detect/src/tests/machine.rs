//! Machines made of files: the healthy one, and modifications by tests.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::facts::{AccelConfig, NodeAccess, Portal, Qpl};
use crate::host::Host;
use crate::{Report, detect_on};

/// The numbers of the healthy machine's devices, the first four on node 0, the others on node 1.
pub(super) const DEVICES: [u32; 8] = [1, 3, 5, 7, 9, 11, 13, 15];

const HEALTHY: &str = include_str!("trees/healthy.txt");

/// A tree in a temporary folder, and answers for [`Host`].
pub(super) struct Machine {
    root: tempfile::TempDir,
    /// The numbers of its original devices.
    pub(super) devices: Vec<u32>,
    pub(super) qpl: Qpl,
    pub(super) accel_config: AccelConfig,
    /// The answer for every existing node.
    pub(super) node: NodeAccess,
    /// The paths that were to be opened.
    pub(super) opened: RefCell<Vec<PathBuf>>,
}

impl Machine {
    /// A machine without any file.
    pub(super) fn empty() -> Machine {
        Machine {
            // A thousand small files take seconds on a disk and no time in memory.
            root: tempfile::tempdir_in("/dev/shm")
                .or_else(|_| tempfile::tempdir())
                .unwrap(),
            devices: Vec::new(),
            qpl: Qpl::Loaded {
                version: "1.9.0".into(),
            },
            accel_config: AccelConfig::Loaded { iaa_cap: false },
            // The behaviour of kernels since mid-2024 for a process without CAP_SYS_RAWIO.
            node: NodeAccess::Opened {
                portal: Portal::Refused {
                    error: "Operation not permitted (os error 1)".into(),
                },
            },
            opened: RefCell::default(),
        }
    }

    /// The machine listed in `trees/healthy.txt`.
    pub(super) fn healthy() -> Machine {
        Machine::listed(HEALTHY, &DEVICES)
    }

    /// The healthy machine with only the first device.
    pub(super) fn single() -> Machine {
        let (first, _) = HEALTHY.split_once("\n\nsys/devices/pci0000:6f/").unwrap();
        Machine::listed(first, &DEVICES[..1])
    }

    fn listed(listing: &str, devices: &[u32]) -> Machine {
        let mut machine = Machine::empty();
        machine.devices = devices.to_vec();
        for line in listing.lines() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            for line in expanded(line) {
                machine.add(&line);
            }
        }
        machine
    }

    pub(super) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    pub(super) fn detect(&self) -> Report {
        detect_on(self.root(), self)
    }

    /// Writes an attribute with the final line feed of sysfs.
    pub(super) fn set(&self, path: &str, value: &str) {
        self.write(path, format!("{value}\n").as_bytes());
    }

    pub(super) fn write(&self, path: &str, content: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(super) fn link(&self, path: &str, target: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// Removes a file, a link or a whole directory.
    pub(super) fn remove(&self, path: &str) {
        let path = self.path(path);
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }

    pub(super) fn replace(&self, path: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(path)).unwrap();
        assert!(text.contains(from), "{path} has no {from}");
        self.write(path, text.replace(from, to).as_bytes());
    }

    /// Sets an attribute of every device.
    pub(super) fn set_devices(&self, attribute: &str, value: &str) {
        for device in &self.devices {
            self.set(&device_path(*device, attribute), value);
        }
    }

    /// Sets an attribute of the first queue of every device.
    pub(super) fn set_queues(&self, attribute: &str, value: &str) {
        for device in &self.devices {
            self.set(&queue_path(*device, 0, attribute), value);
        }
    }

    /// Removes a device and its function on the PCI bus.
    pub(super) fn pull(&self, device: u32) {
        let link = self.path(&format!("sys/bus/dsa/devices/iax{device}"));
        let function = fs::canonicalize(link).unwrap();
        let address = function.parent().unwrap().file_name().unwrap();
        let address = address.to_str().unwrap().to_owned();
        fs::remove_dir_all(function.parent().unwrap()).unwrap();
        self.remove(&format!("sys/bus/pci/devices/{address}"));
        self.remove(&format!("sys/bus/dsa/devices/iax{device}"));
        for index in 0..8 {
            self.remove(&format!("sys/bus/dsa/devices/wq{device}.{index}"));
            self.remove(&format!("sys/bus/dsa/devices/engine{device}.{index}"));
        }
    }

    /// Adds the file described by one line of a listing.
    fn add(&self, line: &str) {
        if let Some((path, content)) = line.split_once(" =") {
            let content = content.strip_prefix(' ').unwrap_or(content);
            self.set(path, &content.replace("\\n", "\n").replace("\\t", "\t"));
        } else if let Some((path, target)) = line.split_once(" -> ") {
            self.link(path, target);
        } else {
            fs::create_dir_all(self.path(line)).unwrap();
        }
    }
}

impl Host for Machine {
    fn qpl(&self) -> Qpl {
        self.qpl.clone()
    }

    fn accel_config(&self) -> AccelConfig {
        self.accel_config.clone()
    }

    fn node(&self, path: &Path) -> NodeAccess {
        self.opened.borrow_mut().push(path.to_owned());
        if path.exists() {
            self.node.clone()
        } else {
            NodeAccess::Missing
        }
    }
}

pub(super) fn device_path(device: u32, attribute: &str) -> String {
    format!("sys/bus/dsa/devices/iax{device}/{attribute}")
}

pub(super) fn queue_path(device: u32, index: u32, attribute: &str) -> String {
    format!("sys/bus/dsa/devices/wq{device}.{index}/{attribute}")
}

/// Expands the first pair of braces to one line for each choice. A link's target repeats it.
fn expanded(line: &str) -> Vec<String> {
    let path_end = line.find(" =").unwrap_or(line.len());
    let Some((start, end)) = line[..path_end].find('{').zip(line[..path_end].find('}')) else {
        return vec![line.to_owned()];
    };
    let braces = &line[start..=end];
    let choices = &line[start + 1..end];
    let choices: Vec<String> = match choices.split_once("..") {
        Some((first, last)) => {
            let (first, last): (u32, u32) = (first.parse().unwrap(), last.parse().unwrap());
            (first..=last).map(|number| number.to_string()).collect()
        }
        None => choices.split(',').map(str::to_owned).collect(),
    };
    choices
        .iter()
        .map(|choice| line.replace(braces, choice))
        .collect()
}
