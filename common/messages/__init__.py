"""Every message that crosses a process: frozen structs in closed unions, MessagePack on the wire, versioned."""
