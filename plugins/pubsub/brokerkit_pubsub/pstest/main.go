// Serves Google's in-memory Pub/Sub fake, pstest, until it is killed.
//
// pstest's own listener keeps Go's limit of 4 MiB a request, so a second one stands beside it, at the address asked
// for, with Pub/Sub's limit of 10 MB.
package main

import (
	"flag"
	"log"
	"net"
	"time"

	pb "cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

func main() {
	address := flag.String("address", "127.0.0.1:8085", "host and port to listen at")
	flag.Parse()

	listener, err := net.Listen("tcp", *address)
	if err != nil {
		log.Fatal(err)
	}
	fake := pstest.NewServerWithAddress("127.0.0.1:0")
	patient := keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(11<<20), grpc.MaxSendMsgSize(256<<20), grpc.KeepaliveEnforcementPolicy(patient))
	pb.RegisterPublisherServer(server, &fake.GServer)
	pb.RegisterSubscriberServer(server, &fake.GServer)
	pb.RegisterSchemaServiceServer(server, &fake.GServer)
	log.Printf("pstest listens at %s", *address)
	log.Fatal(server.Serve(listener))
}
