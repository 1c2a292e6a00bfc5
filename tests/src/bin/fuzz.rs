//! Random packets through the loaded programs and the oracle: see `lb_tests::fuzz`.

use anyhow::Result;
use lb_tests::fuzz::{generate, kernel, run};

fn main() -> Result<()> {
    let seed: u64 = std::env::args().nth(1).map_or(1, |s| s.parse().unwrap());
    let count: u64 = std::env::args().nth(2).map_or(20, |s| s.parse().unwrap());
    kernel::isolated(move |bpffs| {
        let mut kernel = kernel::Kernel::load(bpffs)?;
        let mut fails = 0;
        let mut packets = 0;
        let start = std::time::Instant::now();
        for n in seed..seed + count {
            let script = generate::script(n);
            match run::run(&mut kernel, &script)? {
                Ok(done) => packets += done.packets,
                Err(m) => { fails += 1; println!("seed {n} step {:?}: {}", m.step, m.text) }
            }
        }
        println!("{fails} fails {packets} packets {:?}", start.elapsed());
        Ok(())
    })
}
