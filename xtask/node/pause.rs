//! The program of a pod's sandbox: holds the pod's namespaces and does nothing else.

fn main() {
    loop {
        std::thread::park();
    }
}
