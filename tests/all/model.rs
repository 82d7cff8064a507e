use consort_control::change::Trimming;
use consort_tests::model::{Bounds, World, explore};

fn holds(world: World) {
    let found = explore(&world);
    println!("{}: {found}", world.name);
    assert!(found.broken.is_empty() && !found.idle);
}

#[test]
fn model_probe() {
    let b = Bounds::default();
    holds(World::new("one reason", Trimming::Least).within(Bounds { reasons: 1, ..b }));
    holds(World::new("one crash", Trimming::Least).within(Bounds { reasons: 1, crashes: 1, ..b }));
    holds(World::new("one susp", Trimming::Least).within(Bounds { suspicions: 1, ..b }));
    holds(World::new("susp+crash", Trimming::Least).within(Bounds { suspicions: 1, crashes: 1, ..b }));
}
