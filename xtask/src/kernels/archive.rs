//! Kernels from Debian's archive, fetched with apt and unpacked, but never installed.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};

use super::series::Series;
use crate::shell;

/// The package that depends on the newest kernel of its suite. The cloud flavour is a third of the others in size, and
/// has all that the guests need.
const META: &str = "linux-image-cloud-amd64";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Suites with few packages: the newest kernels of three releases, and of all.
const SMALL: &[(&str, &str)] = &[
    ("debian-security", "bullseye-security"),
    ("debian-security", "bookworm-security"),
    ("debian-security", "trixie-security"),
    ("debian", "trixie-backports"),
];
/// Suites with very many, which are asked only for what the small ones have not.
const LARGE: &[(&str, &str)] =
    &[("debian", "bullseye"), ("debian", "bookworm"), ("debian", "trixie"), ("debian", "sid")];
/// Lists of packages that are older are fetched anew.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// Debian's archive, as an apt sees it that shares nothing with this machine's but how to reach the network.
pub struct Archive {
    directory: PathBuf,
    mirror: Mirror,
    small: Apt,
}

/// A kernel, unpacked.
pub struct Kernel {
    /// What `uname -r` prints, such as "6.1.0-50-cloud-amd64".
    pub release: String,
    /// The upstream version, such as "6.1.192".
    pub version: String,
    /// The image to boot.
    pub image: PathBuf,
    /// The directory with `modules.dep`.
    pub modules: PathBuf,
    /// What belongs to this kernel only is kept here.
    pub directory: PathBuf,
}

impl Archive {
    /// Brings the lists of packages up to date. Lists that are there will do when the network is not.
    pub fn open(directory: PathBuf) -> anyhow::Result<Self> {
        ensure!(shell::find("apt-get").is_some(), "there is no apt-get here, which fetches the kernels");
        ensure!(Path::new(KEYRING).exists(), "{KEYRING} is missing: install debian-archive-keyring");
        let mirror = Mirror::of_this_machine()?;
        let small = Apt::new(directory.join("apt"), &mirror, SMALL)?;
        small.update()?;
        Ok(Self { directory, mirror, small })
    }

    /// Returns the newest kernel of a series, fetched if it is not here yet.
    pub fn kernel(&self, series: &Series) -> anyhow::Result<Kernel> {
        let package = match self.small.newest(series)? {
            Some(package) => package,
            None => {
                let large = Apt::new(self.directory.join("apt-large"), &self.mirror, &[SMALL, LARGE].concat())?;
                large.update()?;
                return self.unpacked(&large, &large.newest(series)?.context(format!("Debian has no Linux {series}"))?);
            }
        };
        self.unpacked(&self.small, &package)
    }

    fn unpacked(&self, apt: &Apt, package: &Package) -> anyhow::Result<Kernel> {
        let directory = self.directory.join(&package.version);
        if !directory.exists() {
            eprintln!("fetching Debian's kernel {}", package.version);
            let part = self.directory.join("part");
            if part.exists() {
                fs::remove_dir_all(&part).with_context(|| format!("cannot empty {}", part.display()))?;
            }
            fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
            apt.unpack(package, &part)?;
            fs::rename(&part, &directory).with_context(|| format!("cannot create {}", directory.display()))?;
        }
        let release = package.release().to_owned();
        let modules = directory.join("lib/modules").join(&release);
        let images = [directory.join("boot").join(format!("vmlinuz-{release}")), modules.join("vmlinuz")];
        let image = images.into_iter().find(|image| image.exists());
        let image = image.with_context(|| format!("there is no image in Debian's kernel {}", package.version))?;
        let version = package.version.split('-').next().unwrap_or_default().to_owned();
        Ok(Kernel { release, version, image, modules, directory })
    }
}

/// A version of a kernel image.
#[derive(Debug, PartialEq, Eq)]
struct Package {
    name: String,
    version: String,
}

impl Package {
    fn release(&self) -> &str {
        self.name.strip_prefix("linux-image-").unwrap_or(&self.name)
    }
}

/// Where this machine gets Debian's packages: an address that `debian` and `debian-security` lie below.
#[derive(Debug, PartialEq, Eq)]
struct Mirror(String);

impl Mirror {
    fn of_this_machine() -> anyhow::Result<Self> {
        let archives = shell::output(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]))?;
        Self::among(&archives).context("the apt of this machine knows no archive of Debian, which has the kernels")
    }

    /// Finds it among the addresses of archives, one a line.
    fn among(archives: &str) -> Option<Self> {
        let mut archives = archives.lines().map(|archive| archive.trim_end_matches('/'));
        archives.find_map(|archive| archive.strip_suffix("/debian").map(|mirror| Self(mirror.to_owned())))
    }
}

/// An apt with lists of its own.
struct Apt {
    options: Vec<OsString>,
    stamp: PathBuf,
}

impl Apt {
    fn new(directory: PathBuf, mirror: &Mirror, suites: &[(&str, &str)]) -> anyhow::Result<Self> {
        for part in ["state/lists/partial", "cache/archives/partial"] {
            let part = directory.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
        }
        let sources = directory.join("sources.list");
        let line = |(archive, suite): &(&str, &str)| {
            format!("deb [signed-by={KEYRING} arch=amd64 target=Packages] {}/{archive} {suite} main\n", mirror.0)
        };
        fs::write(&sources, suites.iter().map(line).collect::<String>())
            .with_context(|| format!("cannot write {}", sources.display()))?;
        // `Dir::Etc::parts` stays as it is: proxies are named there.
        let paths = [
            ("Dir::State", directory.join("state")),
            ("Dir::State::status", "/dev/null".into()),
            ("Dir::Cache", directory.join("cache")),
            ("Dir::Etc::sourcelist", sources),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
        ];
        let settings = [
            // A suite that is no longer changed has lists that have expired.
            ("Acquire::Check-Valid-Until", "false"),
            ("Acquire::Languages", "none"),
            ("Acquire::PDiffs", "false"),
            // Else a suite that was not reached is no error.
            ("APT::Update::Error-Mode", "any"),
            ("APT::Architecture", "amd64"),
            // The user to whom apt would leave the network may not write here.
            ("APT::Sandbox::User", "root"),
        ];
        let paths = paths.into_iter().map(|(name, path)| {
            let mut option = OsString::from(format!("-o{name}="));
            option.push(path);
            option
        });
        let settings = settings.into_iter().map(|(name, value)| format!("-o{name}={value}").into());
        Ok(Self { options: paths.chain(settings).collect(), stamp: directory.join("updated") })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).env("LC_ALL", "C");
        command
    }

    fn update(&self) -> anyhow::Result<()> {
        let age = fs::metadata(&self.stamp).ok().and_then(|stamp| stamp.modified().ok()?.elapsed().ok());
        if age.is_some_and(|age| age < FRESH) {
            return Ok(());
        }
        eprintln!("reading Debian's lists of kernels");
        match shell::output(self.command("apt-get").args(["-qq", "update"])) {
            Ok(_) => fs::write(&self.stamp, "").with_context(|| format!("cannot write {}", self.stamp.display())),
            Err(error) if age.is_some() => {
                eprintln!("Debian's lists of kernels are not up to date: {error:#}");
                Ok(())
            }
            Err(error) => Err(error.context("Debian's archive was not reached")),
        }
    }

    /// Returns the image of the newest kernel of a series.
    fn newest(&self, series: &Series) -> anyhow::Result<Option<Package>> {
        let table = shell::output(self.command("apt-cache").args(["madison", META]))?;
        let Some(version) = series.best(versions(&table)) else { return Ok(None) };
        let description = shell::output(self.command("apt-cache").args(["show", &format!("{META}={version}")]))?;
        let name = depends(&description).find(|name| is_kernel(name, "linux-image-"));
        let name = name.with_context(|| format!("{META} {version} depends on no kernel:\n{description}"))?;
        Ok(Some(Package { name: name.to_owned(), version: version.to_owned() }))
    }

    /// Fetches a kernel and unpacks it, with a list of what its modules depend on, below `to`.
    fn unpack(&self, package: &Package, to: &Path) -> anyhow::Result<()> {
        let Package { name, version } = package;
        let description = shell::output(self.command("apt-cache").args(["show", &format!("{name}={version}")]))?;
        // Since Linux 7 the image's package is an empty one that depends on these.
        let of_parts = |name: &&str| is_kernel(name, "linux-binary-") || is_kernel(name, "linux-modules-");
        let parts: Vec<&str> = depends(&description).filter(of_parts).collect();
        let parts = if parts.is_empty() { vec![name.as_str()] } else { parts };
        let archives = to.join("archives");
        fs::create_dir(&archives).with_context(|| format!("cannot create {}", archives.display()))?;
        shell::output(
            self.command("apt-get")
                .args(["-qq", "download"])
                .args(parts.iter().map(|part| format!("{part}={version}")))
                .current_dir(&archives),
        )
        .with_context(|| format!("Debian's kernel {version} was not fetched"))?;
        for archive in fs::read_dir(&archives)? {
            shell::output(Command::new("dpkg").arg("-x").arg(archive?.path()).arg(to))?;
        }
        fs::remove_dir_all(&archives).with_context(|| format!("cannot remove {}", archives.display()))?;
        if !to.join("lib").exists() {
            std::os::unix::fs::symlink("usr/lib", to.join("lib")).context("cannot link usr/lib")?;
        }
        let depmod = shell::find("depmod").context("depmod is missing: install kmod")?;
        shell::output(Command::new(depmod).arg("-b").arg(to).arg(package.release()))?;
        Ok(())
    }
}

/// Returns the versions in what `apt-cache madison` prints.
fn versions(madison: &str) -> impl Iterator<Item = &str> {
    madison.lines().filter_map(|line| line.split('|').nth(1).map(str::trim))
}

/// Returns the names of the packages that one depends on, as `apt-cache show` has them.
fn depends(description: &str) -> impl Iterator<Item = &str> {
    let line = description.lines().find_map(|line| line.strip_prefix("Depends:")).unwrap_or_default();
    line.split([',', '|']).filter_map(|one| one.split_whitespace().next())
}

/// Returns whether a package is of one kernel, by its prefix and the digit behind: the meta packages have none there.
fn is_kernel(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_of_a_meta_package_is_found() {
        let description = "Package: linux-image-cloud-amd64\nVersion: 7.3.4-1~bpo13+1\n\
                           Depends: linux-base-cloud-amd64 (= 7.3.4-1~bpo13+1), linux-image-7.3.4+deb13-cloud-amd64 \
                           (= 7.3.4-1~bpo13+1), linux-modules-cloud-amd64 (= 7.3.4-1~bpo13+1)\nSize: 1524\n";
        let kernels: Vec<&str> = depends(description).filter(|name| is_kernel(name, "linux-image-")).collect();
        assert_eq!(kernels, ["linux-image-7.3.4+deb13-cloud-amd64"]);
        assert!(!depends(description).any(|name| is_kernel(name, "linux-modules-")));
        let package = Package { name: kernels[0].to_owned(), version: "7.3.4-1~bpo13+1".to_owned() };
        assert_eq!(package.release(), "7.3.4+deb13-cloud-amd64");
    }

    #[test]
    fn alternatives_are_dependencies_too() {
        let description =
            "Depends: dracut | initramfs-tools (>= 0.120+deb8u2), linux-binary-7.3.4-cloud-amd64 (= 7.3.4-1)";
        let all: Vec<&str> = depends(description).collect();
        assert_eq!(all, ["dracut", "initramfs-tools", "linux-binary-7.3.4-cloud-amd64"]);
        assert_eq!(depends("Package: x\n").count(), 0);
    }

    #[test]
    fn versions_are_the_second_column() {
        let table = " linux-image-cloud-amd64 | 7.3.4-1~bpo13+1 | http://mirror.example/debian trixie-backports/main\n \
                     linux-image-cloud-amd64 |  6.1.192-2 | http://mirror.example/debian-security bookworm\n";
        assert_eq!(versions(table).collect::<Vec<_>>(), ["7.3.4-1~bpo13+1", "6.1.192-2"]);
    }

    #[test]
    fn the_mirror_of_this_machine_is_used() {
        let archives = "https://other.example/apt/\nhttp://a.example/debian-security/\nhttp://b.example/x/debian/\n";
        assert_eq!(Mirror::among(archives), Some(Mirror("http://b.example/x".to_owned())));
        assert_eq!(Mirror::among("https://other.example/ubuntu/\n"), None);
    }
}
