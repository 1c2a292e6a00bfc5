//! Random packets through the loaded programs and the oracle: see `lb_tests::fuzz`.

use anyhow::{Result, ensure};
use lb_tests::fuzz::campaign::{Options, run_campaign};
use lb_tests::fuzz::kernel::{Kernel, isolated};

fn main() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let report = isolated(move |bpffs| run_campaign(&mut Kernel::load(bpffs)?, options))?;
    ensure!(
        report.mismatches.is_empty(),
        "{} mismatches between programs and oracle",
        report.mismatches.len()
    );
    Ok(())
}
