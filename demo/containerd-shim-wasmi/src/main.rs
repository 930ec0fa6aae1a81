//! `containerd-shim-wasmi-v1`: runs a container's entry point as a WASI preview 1 module in the wasmi interpreter.
//! The library does what every containerd shim does; only how a module is run belongs here.

use std::net::TcpListener;

use anyhow::{Context, Result};
use containerd_shim_wasm::sandbox::Sandbox;
use containerd_shim_wasm::sandbox::context::RuntimeContext;
use containerd_shim_wasm::shim::{Cli, Shim, Version, version};
use wasmi::{Engine, Linker, Module, Store};
use wasmi_wasi::{Dir, WasiCtx, WasiCtxBuilder, ambient_authority};

struct Wasmi;

#[derive(Default)]
struct Interpreter;

impl Shim for Wasmi {
    type Sandbox = Interpreter;

    fn name() -> &'static str {
        "wasmi"
    }

    fn version() -> Version {
        version!()
    }
}

impl Sandbox for Interpreter {
    async fn run_wasi(&self, container: &impl RuntimeContext) -> Result<i32> {
        // Held while the module runs, as by a shim that serves HTTP for its modules.
        let _listener = listener(container)?;
        let entrypoint = container.entrypoint();
        let engine = Engine::default();
        let module = Module::new(&engine, &*entrypoint.source.as_bytes()?).context("not a Wasm module")?;
        let mut linker: Linker<WasiCtx> = Linker::new(&engine);
        wasmi_wasi::add_to_linker(&mut linker, |wasi| wasi)?;
        let mut store = Store::new(&engine, wasi(container)?);
        let instance = linker.instantiate_and_start(&mut store, &module)?;
        let start = instance.get_typed_func::<(), ()>(&store, &entrypoint.func)?;
        match start.call(&mut store, ()) {
            Ok(()) => Ok(0),
            // `proc_exit` ends a module by a trap that carries its exit status.
            Err(error) => error.i32_exit_status().ok_or_else(|| error.into()),
        }
    }
}

/// The port in the variable `LISTEN_PORT`, if the container has it.
fn listener(container: &impl RuntimeContext) -> Result<Option<TcpListener>> {
    let port = container.envs().iter().find_map(|it| it.strip_prefix("LISTEN_PORT="));
    let Some(port) = port else {
        return Ok(None);
    };
    let port: u16 = port.parse().context("LISTEN_PORT is not a port")?;
    let listener = TcpListener::bind(("0.0.0.0", port));
    Ok(Some(listener.with_context(|| format!("failed to listen on port {port}"))?))
}

/// What the module sees of the container: its arguments, environment, standard streams and root folder.
fn wasi(container: &impl RuntimeContext) -> Result<WasiCtx> {
    let mut builder = WasiCtxBuilder::new();
    builder.args(container.args())?.inherit_stdio();
    for variable in container.envs() {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        builder.env(name, value)?;
    }
    let root = Dir::open_ambient_dir("/", ambient_authority())?;
    builder.preopened_dir(root, "/")?;
    Ok(builder.build())
}

fn main() {
    Wasmi::run(None);
}
