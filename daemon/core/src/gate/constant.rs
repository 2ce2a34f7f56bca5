//! Every number of the gate, once, with what it is for.
//!
//! They are the defaults that the operating characteristics of `examples/gate.rs` were measured
//! with. A configuration may change margins and alpha, never the shape of the tests.

/// Quantiles of a latency that are judged.
pub const QUANTILES: [f64; 4] = [0.5, 0.99, 0.999, 0.9999];
/// `FAIL_MARGIN[q]`: by how much quantile `q` of the canary may be higher, nominal. The margin in
/// force is the nearest whole number of buckets, at least one: 4.4, 4.4, 9.1 and 24.2 % at scale 4.
pub const FAIL_MARGIN: [f64; 4] = [0.03, 0.05, 0.10, 0.25];
/// `PASS_MARGIN[band][q]`: what a certificate promises, nominal. The fewer observations, the wider.
/// `None`: so far out that this band cannot say anything.
pub const PASS_MARGIN: [[Option<f64>; 4]; 3] = [
    [Some(0.10), Some(0.30), Some(1.00), None],
    [Some(0.05), Some(0.15), Some(0.40), None],
    [Some(0.05), Some(0.10), Some(0.25), Some(1.00)],
];
/// Canary observations per second from which the next band of [`PASS_MARGIN`] holds.
pub const BAND_RATE: [f64; 2] = [500.0, 2000.0];
/// `QUANTILE_WEIGHT[q]`: share of quantile `q` in a latency's evidence.
pub const QUANTILE_WEIGHT: [f64; 4] = [0.25, 0.35, 0.30, 0.10];

/// Probability that an unharmed canary is ever rolled back in a whole rollout.
pub const ALPHA_FAIL: f64 = 0.01;
/// Steps of a rollout that share [`ALPHA_FAIL`].
pub const STEPS: u32 = 3;
/// Probability, for each certified quantity, that a canary at its pass margin is certified.
pub const ALPHA_PASS: f64 = 0.05;
/// Shares of [`ALPHA_FAIL`] by kind of KPI; several KPIs of one kind share alike.
pub const LATENCY_WEIGHT: f64 = 0.7;
/// See [`LATENCY_WEIGHT`].
pub const ERRORS_WEIGHT: f64 = 0.2;
/// See [`LATENCY_WEIGHT`].
pub const RESOURCE_WEIGHT: f64 = 0.1;

/// Bets of the martingale (Waudby-Smith & Ramdas 2024): the evidence is their mean.
pub const BETS: [f64; 4] = [0.15, 0.35, 0.8, 2.0];
/// Scores are clamped to this many standard deviations.
pub const Z_MAX: f64 = 3.0;
/// Further martingales begin this often, so that an effect that begins late is found.
pub const RESTART_SECONDS: f64 = 30.0;
/// How many of them.
pub const RESTARTS: usize = 10;
/// Shares of the two parts of a latency's evidence: level and episodes.
pub const LEVEL_SHARE: f64 = 0.75;
/// Ratios of episode rates that are bet on.
pub const EPISODE_RATIOS: [f64; 6] = [2.0, 4.0, 8.0, 16.0, 32.0, 64.0];
/// A block is an episode of an arm with this many observations above p99.99, beyond those expected.
pub const EPISODE_COUNT: f64 = 3.0;
/// And with this share of the canary's observations, when instances are not told apart.
pub const EPISODE_SHARE: f64 = 0.005;
/// And with this share of the instance's observations, when they are.
pub const EPISODE_SHARE_LABELLED: f64 = 0.001;

/// Odds by which a certificate bets that the canary is better than the margin.
pub const PASS_RATIOS: [f64; 8] = [1.05, 1.1, 1.2, 1.4, 1.8, 2.6, 4.0, 8.0];
/// One block adds at most this to a certificate.
pub const PASS_BLOCK_MAX: f64 = 0.7;
/// No certificate before this many blocks with both arms,
pub const PASS_BLOCKS: u64 = 30;
/// and this many observations of the canary.
pub const PASS_COUNT: u64 = 500;

/// Error rates: factors that are bet on.
pub const ERROR_FACTORS: [f64; 6] = [1.5, 2.0, 3.0, 5.0, 10.0, 30.0];
/// Tolerated: this much more than the baseline's,
pub const ERROR_MARGIN: f64 = 0.25;
/// and in any case this share of all.
pub const ERROR_FLOOR: f64 = 1e-4;
/// One block adds at most this to the evidence, so that no single block decides.
pub const ERROR_BLOCK_MAX: f64 = 2.0;
/// `ERROR_PASS_RATIO[band]`: a certificate says: less than this many times the baseline's rate,
pub const ERROR_PASS_RATIO: [f64; 3] = [3.0, 2.0, 1.5];
/// or less than this share of all, `[band]`.
pub const ERROR_PASS_FLOOR: [f64; 3] = [2e-3, 5e-4, 5e-4];

/// Resources: tolerated ratio above 1, for fail and pass alike.
pub const RESOURCE_MARGIN: f64 = 0.10;
/// Resources: the standard deviation of a block's logarithmic ratio is not taken to be less.
pub const RESOURCE_NOISE_MIN: f64 = 0.02;
/// Resources: this long a look before any verdict. Gauges drift slowly, and a new process warms up.
pub const RESOURCE_SECONDS: f64 = 60.0;

/// Baseline alone, before the canary: kept this long,
pub const HISTORY_SECONDS: f64 = 300.0;
/// and used from this length on.
pub const HISTORY_SECONDS_MIN: f64 = 20.0;
/// With history, the first blocks with both arms say how many observations there are.
pub const OPENING_BLOCKS: usize = 5;
/// Without, they say also what is normal, and bring no evidence.
pub const LEARNING_BLOCKS: usize = 20;
/// So many seconds with both arms before their contrast is its own measure of noise: the blocks of
/// [`LEARNING_BLOCKS`], but not so few seconds that only fast noise is in them.
pub const OWN_SECONDS: f64 = 20.0;
/// Noise is looked for over windows of these lengths, seconds; those shorter than a block fall away.
pub const WINDOW_SECONDS: [f64; 6] = [0.2, 1.0, 2.0, 5.0, 10.0, 20.0];
/// Rare observations are gathered over at most this many seconds before they are a score.
pub const STREAM_SECONDS: f64 = 5.0;
/// Until about so many observations of the canary lie above the quantile.
pub const STREAM_COUNT: f64 = 0.5;
/// Windows before their variance counts.
pub const WINDOWS_MIN: u64 = 4;
/// Baseline instances from which their differences measure the noise.
pub const INSTANCES_MIN: usize = 3;
/// Scores of instances before they say how scores hang together.
pub const SCORES_MIN: u64 = 20;

/// A certificate has to stand: the canary is within the pass margin over this time, too.
pub const STAND_SECONDS: f64 = 60.0;
/// A canary with more stalls than chance allows, this probability, is not certified.
pub const EPISODE_CHANCE: f64 = 0.01;
/// A baseline whose processes are not told apart may be so many: it then stalls that much more.
pub const EPISODE_PROCESSES: f64 = 4.0;
/// More than this share of blocks without one arm: hold.
pub const MISSING_SHARE: f64 = 0.2;
/// Or this many seconds in a row.
pub const MISSING_SECONDS: f64 = 10.0;
/// After a restart of the canary, this much is not judged.
pub const WARM_UP_SECONDS: f64 = 5.0;
/// Traffic off its weight by more than this factor: hold.
pub const VOLUME_FACTOR: f64 = 2.0;
/// This share of the baseline above its own p99: it is itself ill, hold.
pub const BASELINE_ILL_SHARE: f64 = 0.05;
/// Lost observations beyond this share make a block unusable.
pub const LOST_SHARE: f64 = 1e-3;
/// A canary that was away for longer is another one when it comes back.
pub const NEW_STEP_SECONDS: f64 = 60.0;
