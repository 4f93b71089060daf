# A host: Debian's libvirt in a root of its own. It ends when standard input closes.
# ROOT is a folder of unpacked packages, TOP an empty folder, SHARED the hosts' folder /shared, and
# NUMBER tells hosts apart.
set -e
hostname "host$NUMBER"
mount -t tmpfs none "$TOP"
mkdir "$TOP/upper" "$TOP/work" "$TOP/root"
root=$TOP/root
mount -t overlay none -o "lowerdir=$ROOT,upperdir=$TOP/upper,workdir=$TOP/work" "$root"
mkdir -p "$root/etc/libvirt" "$root/shared" "$root/var/log/libvirt/qemu" "$SHARED/ram$NUMBER"
mount --bind "$SHARED" "$root/shared"
mount -t proc none "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs none "$root/run"
mount -t tmpfs none "$root/tmp"
rm -rf "$root/var/run"
ln -s /run "$root/var/run"
for file in passwd group; do
    sed 's/:\*:/:x:/' "$root/usr/share/base-passwd/$file.master" > "$root/etc/$file"
done
# libvirtd wants to know its usual user and group, used or not.
echo 'libvirt-qemu:x:64055:64055::/:/bin/false' >> "$root/etc/passwd"
printf '%s:x:64055:\n' libvirt-qemu kvm libvirt >> "$root/etc/group"
echo "127.0.0.1 localhost host$NUMBER" > "$root/etc/hosts"
cat > "$root/etc/libvirt/libvirtd.conf" <<END
listen_tls = 0
listen_tcp = 1
auth_tcp = "none"
auth_unix_rw = "none"
host_uuid = "00000000-0000-4000-8000-00000000000$NUMBER"
END
cat > "$root/etc/libvirt/qemu.conf" <<END
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
remember_owner = 0
memory_backing_dir = "/shared/ram$NUMBER"
END
chroot "$root" /usr/sbin/libvirtd --listen < /dev/null > /dev/null &
# The first process has to wait for the orphans that libvirtd leaves: `cat` alone would not.
exec 3<&0
cat <&3 > /dev/null &
wait $!
