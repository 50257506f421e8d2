//! The program that gives the frames of a device to AF_XDP sockets.
//!
//! It is so short that it is written here as the kernel takes it (RFC 9669; the context is
//! `struct xdp_md` of `linux/bpf.h`), and so needs no compiler, loader or library.

use std::os::fd::{AsRawFd, OwnedFd};

use crate::Mac;
use crate::nic::sys_bpf::Instruction;

/// Places in `struct xdp_md`.
const DATA: i16 = 0;
const DATA_END: i16 = 4;
const RX_QUEUE_INDEX: i16 = 16;
/// `enum xdp_action`: on to the host.
const XDP_PASS: i32 = 2;
/// Helper `bpf_redirect_map`, which any licence may call. The low bits of its flags are what is
/// done with a frame of a queue without a socket (Linux 5.3).
const REDIRECT_MAP: i32 = 51;
/// Bytes of an address, which the frame starts with.
const MAC: i32 = 6;

// Opcodes.
const LOAD16: u8 = 0x69;
const LOAD32: u8 = 0x61;
const LOAD_IMM64: u8 = 0x18;
const MOV_IMM: u8 = 0xb7;
const MOV: u8 = 0xbf;
const ADD_IMM: u8 = 0x07;
const JUMP_IF_GREATER: u8 = 0x2d;
const JUMP32_IF_NOT_IMM: u8 = 0x56;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// In place of a source register: the number that is loaded is a map's descriptor.
const MAP_FD: u8 = 1;

/// Sends each frame to the socket that `sockets`, a map, has for its queue. Frames to the addresses
/// `host` are the host's.
pub(super) fn redirect(sockets: &OwnedFd, host: &[Mac]) -> Vec<Instruction> {
    let mut program = Vec::new();
    let mut add = |opcode, registers, offset, imm| {
        program.push(Instruction {
            opcode,
            registers,
            offset,
            imm,
        });
    };
    if !host.is_empty() {
        // r2: the frame, r3: its end. A frame without an address is not the host's.
        add(LOAD32, reg(2, 1), DATA, 0);
        add(LOAD32, reg(3, 1), DATA_END, 0);
        add(MOV, reg(4, 2), 0, 0);
        add(ADD_IMM, reg(4, 0), 0, MAC);
        // Over the two loads, and four instructions for each address.
        add(JUMP_IF_GREATER, reg(4, 3), 2 + 4 * host.len() as i16, 0);
        add(LOAD32, reg(4, 2), 0, 0);
        add(LOAD16, reg(5, 2), 4, 0);
    }
    for Mac([a, b, c, d, e, f]) in host {
        let (start, end) = (
            i32::from_ne_bytes([*a, *b, *c, *d]),
            u16::from_ne_bytes([*e, *f]),
        );
        add(JUMP32_IF_NOT_IMM, reg(4, 0), 3, start);
        add(JUMP32_IF_NOT_IMM, reg(5, 0), 2, end.into());
        add(MOV_IMM, reg(0, 0), 0, XDP_PASS);
        add(EXIT, 0, 0, 0);
    }
    // r2: the queue, r1: the map, r3: the flags.
    add(LOAD32, reg(2, 1), RX_QUEUE_INDEX, 0);
    add(LOAD_IMM64, reg(1, MAP_FD), 0, sockets.as_raw_fd());
    add(0, 0, 0, 0);
    add(MOV_IMM, reg(3, 0), 0, XDP_PASS);
    add(CALL, 0, 0, REDIRECT_MAP);
    add(EXIT, 0, 0, 0);
    program
}

const fn reg(destination: u8, source: u8) -> u8 {
    source << 4 | destination
}
